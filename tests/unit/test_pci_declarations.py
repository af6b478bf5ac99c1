"""What a device may declare, and the bytes that its capabilities become, as the specifications lay them out."""

from __future__ import annotations

import pytest

from nvmuser.errors import DeviceError, UsageError
from nvmuser.pci import Area, Bar, ClassCode, Identity, Msi, MsiX, PciDevice, PciExpress, PowerManagement, Space, Vendor


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"index": 6, "size": 0x1000}, "BARs 0 to 5"),
        ({"index": 5, "size": 0x1000, "wide": True}, "a wide one takes two"),
        ({"index": 0, "size": 0x1800}, "power of two"),
        ({"index": 0, "size": 8}, "power of two from 16"),
        ({"index": 0, "size": 512, "space": Space.IO}, "256 at most"),
        ({"index": 0, "size": 16, "space": Space.IO, "wide": True}, "not wide"),
        ({"index": 0, "size": 0x1000, "mappable": (Area(0, 0x2000),)}, "beyond"),
        ({"index": 0, "size": 0x4000, "mappable": (Area(0, 0x2000), Area(0x1000, 0x1000))}, "overlap"),
        ({"index": 0, "size": 0x4000, "mappable": (Area(0x800, 0x1000),)}, "multiple of 4096"),
        ({"index": 0, "size": 0x4000, "mappable": (Area(0, 0),)}, "empty"),
    ],
)
def test_a_bar_that_cannot_be_is_refused(arguments: dict[str, object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        Bar(**arguments)  # type: ignore[arg-type]


def device(**declarations: object) -> type[PciDevice]:
    return type("Device", (PciDevice,), {"identity": Identity(0x1234, 0x5678), **declarations})


@pytest.mark.parametrize(
    ("declarations", "complaint"),
    [
        ({"bars": (Bar(0, 0x1000, wide=True), Bar(1, 0x1000))}, "BAR 1 is declared twice"),
        ({"capabilities": (MsiX(4, table_bar=0),)}, "not within a memory BAR 0"),
        ({"bars": (Bar(0, 64),), "capabilities": (MsiX(4, table_bar=0),)}, "pending bits"),
        ({"bars": (Bar(0, 64, space=Space.IO),), "capabilities": (MsiX(2, table_bar=0),)}, "memory BAR"),
        ({"bars": (Bar(0, 256),), "capabilities": (MsiX(2, table_bar=0, pending_offset=24),)}, "overlap"),
        ({"capabilities": (Vendor(bytes(100)), Vendor(bytes(100)))}, "do not fit"),
    ],
)
def test_declarations_that_contradict_each_other_are_refused(declarations: dict[str, object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        device(**declarations).describe()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Identity(0x10000, 0),
        lambda: Identity(0, 0, revision=256),
        lambda: ClassCode(0, -1),
        lambda: Msi(3),
        lambda: MsiX(0, table_bar=0),
        lambda: MsiX(1, table_bar=0, table_offset=4),
        lambda: Vendor(bytes(161)),
    ],
)
def test_values_that_do_not_fit_are_refused(make: object) -> None:
    with pytest.raises(UsageError):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("capability", "packed"),
    [
        (PowerManagement(), "0100 0300 0800 00 00"),
        (Msi(4), "0500 8401" + "00" * 20),
        (MsiX(8, table_bar=2, table_offset=0x1000, pending_bar=3, pending_offset=0x800), "1100 0700 02100000 03080000"),
        (MsiX(8, table_bar=2, table_offset=0x1000), "1100 0700 02100000 82100000"),
        (PciExpress(), "1000 0200 00800010 0000 0000 11000000 0000 1100" + "00" * 40),
        (Vendor(b"\xaa\xbb"), "0900 05 aabb"),
    ],
)
def test_capabilities_lie_as_the_specifications_say(capability: Msi, packed: str) -> None:
    assert capability.pack() == bytes.fromhex(packed)


def test_a_device_that_is_not_served_has_no_guest() -> None:
    board = device()()
    for use in (lambda: board.memory, lambda: board.trigger(), lambda: board.config_get(0, 4)):
        with pytest.raises(DeviceError, match="Device is not served"):
            use()
