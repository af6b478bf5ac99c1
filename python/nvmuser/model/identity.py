"""Makes the identifiers of what is declared. Each is made once and kept; nothing here is ever called for what
has them."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace

from nvmuser.errors import ConflictError
from nvmuser.model.objects import MAX_CONTROLLERS, Controller, Volume

NQN_PREFIX = "nqn.2026-11.org.nvmuser:"
CNTLID_MAX = MAX_CONTROLLERS
"""Each has an identifier of its own."""


def eui64() -> str:
    """A random EUI-64, marked as locally administered and individual."""
    octets = bytearray(secrets.token_bytes(8))
    octets[0] = octets[0] & 0xFC | 0x02
    return octets.hex().upper()


def identify_volume(volume: Volume) -> Volume:
    """With every identifier that is still empty. A guest recognises a namespace by all three of them."""
    extended = volume.eui64 or eui64()
    return replace(
        volume,
        uuid=volume.uuid or str(uuid.uuid4()),
        eui64=extended,
        # An NGUID ends in an EUI-64, after a vendor's 8 bytes of its own choice.
        nguid=volume.nguid or secrets.token_bytes(8).hex().upper() + extended,
    )


def free_cntlids(controllers: Iterable[Controller]) -> Iterator[int]:
    """Controller ids that none of these has, from the lowest."""
    used = {controller.cntlid for controller in controllers}
    return (number for number in range(1, CNTLID_MAX + 1) if number not in used)


def identify_controller(controller: Controller, free: Iterator[int]) -> Controller:
    """With every identifier that is still empty but its NQN (`nvmuser.model.spdk_names`).

    :param free: controller ids, of which it takes the first.
    :raises ConflictError: there is none left.
    """
    cntlid = controller.cntlid or next(free, 0)
    if not cntlid:
        raise ConflictError(f"controller {controller.name}: all {CNTLID_MAX} controller ids are in use")
    return replace(
        controller,
        serial=controller.serial or "NU" + secrets.token_hex(9).upper(),
        cntlid=cntlid,
    )


def device_in_guest(volume: Volume) -> str:
    """Its path in a guest with udev, which stays whatever number Linux gives the namespace.

    Linux makes a namespace's `wwid` from its UUID (drivers/nvme/host/sysfs.c, `wwid_show`), and udev's
    60-persistent-storage.rules a link from that.
    """
    return f"/dev/disk/by-id/nvme-uuid.{volume.uuid}"
