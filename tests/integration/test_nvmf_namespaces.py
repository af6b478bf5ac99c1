"""What SPDK's target, as patched here, says of its namespaces: their health, and whether they can be written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bare_target import BareTarget
from raw_nvme import (
    ALL_NAMESPACES,
    BLOCK,
    DSM,
    FLUSH,
    GET_LOG,
    IDENTIFY,
    READ,
    WRITE,
    WRITE_ZEROES,
    RawNvme,
    call,
    command,
    read_or_write,
    serve,
)

SUCCESS, INVALID_NAMESPACE, WRITE_PROTECTED = 0x00, 0x0B, 0x20
NSATTR, ONCS, LPA = 99, 520, 261
HEALTH = 2


def health(raw: RawNvme, nsid: int = ALL_NAMESPACES) -> dict[str, int]:
    page = raw.log_page(HEALTH, 512, nsid)
    fields = {
        "warning": (0, 1), "kelvin": (1, 2), "spare": (3, 1), "threshold": (4, 1), "used": (5, 1),
        "units read": (32, 16), "units written": (48, 16), "reads": (64, 16), "writes": (80, 16),
        "power cycles": (112, 16), "hours": (128, 16), "unsafe": (144, 16), "errors": (160, 16),
    }  # fmt: skip
    return {name: int.from_bytes(page[at : at + size], "little") for name, (at, size) in fields.items()}


def test_health_is_that_of_a_healthy_disk(raw: RawNvme) -> None:
    before = health(raw)
    assert 273 < before["kelvin"] < int.from_bytes(raw.fetch(IDENTIFY, cdw10=1)[266:268], "little")
    assert before["spare"] > before["threshold"]
    assert (before["warning"], before["used"], before["unsafe"], before["errors"]) == (0, 0, 0, 0)
    assert before["power cycles"] == 1
    assert before["units written"] == before["writes"] == 0

    buffer = raw.allocate(5 * BLOCK)
    lists = raw.allocate()
    raw.poke(lists, b"".join((buffer + at * BLOCK).to_bytes(8, "little") for at in range(1, 5)))
    for _ in range(25):
        assert raw.do(read_or_write(WRITE, 5, (buffer, lists)), 1).status == SUCCESS
    assert raw.do(read_or_write(READ, 1, (buffer, 0)), 1).status == SUCCESS
    after = health(raw)
    assert (after["units written"], after["writes"]) == (1, 25), "512,000 bytes"
    assert (after["units read"], after["reads"]) == (before["units read"] + 1, before["reads"] + 1)


def test_health_by_namespace(nvmf_target: BareTarget, tmp_path: Path, connect_raw: Callable[[Path], RawNvme]) -> None:
    call(nvmf_target, ("bdev_malloc_create", {"name": "other", "num_blocks": 1024, "block_size": BLOCK}))
    raw = connect_raw(serve(nvmf_target, tmp_path / "c", "m", "other"))
    raw.enable()
    raw.create_queue()
    assert raw.fetch(IDENTIFY, cdw10=1)[LPA] & 1, "it is said that they have"
    for nsid in (1, 2, 2):
        assert raw.do(read_or_write(WRITE, 1, (raw.allocate(), 0), nsid=nsid), 1).status == SUCCESS
    assert [health(raw, nsid)["writes"] for nsid in (1, 2, ALL_NAMESPACES, 0)] == [1, 2, 3, 3]
    assert raw.admin(GET_LOG, 3, data=(raw.allocate(), 0), cdw10=127 << 16 | HEALTH).status == INVALID_NAMESPACE


def test_the_end_of_the_health_page(raw: RawNvme) -> None:
    """A page is read in parts, and past its end."""
    whole = raw.log_page(HEALTH, 512)
    part = raw.fetch(GET_LOG, ALL_NAMESPACES, 512, cdw10=127 << 16 | HEALTH, cdw12=32)
    assert part[:64] == whole[32:96]
    assert raw.admin(GET_LOG, ALL_NAMESPACES, data=(raw.allocate(), 0), cdw10=3 << 16 | HEALTH, cdw12=512).status


def test_a_snapshot_is_write_protected(
    nvmf_target: BareTarget, tmp_path: Path, connect_raw: Callable[[Path], RawNvme]
) -> None:
    call(
        nvmf_target,
        ("bdev_lvol_create_lvstore", {"bdev_name": "m", "lvs_name": "p", "cluster_sz": 1 << 20}),
        ("bdev_lvol_create", {"lvs_name": "p", "lvol_name": "v", "size_in_mib": 2}),
        ("bdev_lvol_snapshot", {"lvol_name": "p/v", "snapshot_name": "s"}),
    )
    raw = connect_raw(serve(nvmf_target, tmp_path / "c", "p/v", "p/s"))
    raw.enable()
    raw.create_queue()
    assert [raw.fetch(IDENTIFY, nsid)[NSATTR] & 1 for nsid in (1, 2)] == [0, 1]
    assert raw.fetch(IDENTIFY, cdw10=1)[ONCS] & 0xC == 0xC, "the volume beside it is not the worse for it"
    buffer = raw.allocate()
    ranges = raw.allocate()
    raw.poke(ranges, bytes(4) + (8).to_bytes(4, "little") + bytes(8))
    writing = {
        "write": read_or_write(WRITE, 1, (buffer, 0), nsid=2),
        "zeroes": read_or_write(WRITE_ZEROES, 1, (0, 0), nsid=2),
        "discard": command(DSM, 2, data=(ranges, 0), cdw11=4),
    }
    for name, entry in writing.items():
        completion = raw.do(entry, 1)
        assert (completion.status_type, completion.status, completion.do_not_retry) == (0, WRITE_PROTECTED, True), name
    assert raw.do(read_or_write(READ, 1, (buffer, 0), nsid=2), 1).status == SUCCESS
    assert raw.do(command(FLUSH, 2), 1).status == SUCCESS
    assert raw.do(read_or_write(WRITE, 1, (buffer, 0)), 1).status == SUCCESS
    assert raw.do(command(DSM, 1, data=(ranges, 0), cdw11=4), 1).status == SUCCESS
