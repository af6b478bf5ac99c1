"""File volumes on file systems that lack something: zeroed ranges, room, asynchronous I/O; and files that shrink."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from backing import MIB, call, controller, sparse, uuid
from bare_target import BareTarget, TargetFactory
from private_tmpfs import private_tmpfs

from nvmuser import initiator
from nvmuser.errors import NvmeStatusError
from nvmuser.rpc import methods
from nvmuser.rpc.methods import Request

CAPACITY_EXCEEDED = (0, 0x81)
TRANSFER = 128 << 10


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    with private_tmpfs("8m") as path:
        yield path


def serve(target: BareTarget, directory: Path, *requests: Request, bdevs: tuple[str, ...] = ("v",)) -> Path:
    """A controller of these bdevs."""
    call(target, methods.create_transport(), *requests, *controller(directory, "c0", *bdevs))
    return directory / "c0"


def write_until_it_fails(directory: Path) -> tuple[NvmeStatusError, int]:
    """Write the first namespace from its beginning on. :return: the first error, and how much was written before."""
    with initiator.connect(directory) as connected, connected.queue(4, timeout=60) as queue:
        namespace, data = connected.namespace(1), initiator.allocate(TRANSFER)
        data.view[:] = b"\xff" * TRANSFER
        for at in range(0, namespace.size, TRANSFER):
            try:
                queue.write(namespace, at // namespace.block_size, data).wait()
            except NvmeStatusError as error:
                return error, at
    pytest.fail("everything found room")


@pytest.mark.parametrize("block_size", [512, 4096])
def test_zeroes_where_there_are_no_zeroed_ranges(
    spdk_target: BareTarget, tmp_path: Path, tmpfs: Path, block_size: int
) -> None:
    volume = methods.aio_create("v", str(sparse(tmpfs / "v", 4 * MIB)), block_size, uuid(1))
    with (
        initiator.connect(serve(spdk_target, tmp_path, volume)) as connected,
        connected.queue(4, timeout=60) as queue,
    ):
        namespace, data, back = connected.namespace(1), b"\xff" * TRANSFER, bytearray(TRANSFER)
        assert connected.identify().dsm
        assert connected.identify().write_zeroes
        part = 8192 // block_size
        for clear in (
            lambda: queue.write_zeroes(namespace, part, part),
            lambda: queue.deallocate(namespace, [(part, part)]),
        ):
            queue.write(namespace, 0, data).wait()
            clear().wait()
            queue.read(namespace, 0, back).wait()
            assert back == data[:8192] + bytes(8192) + data[16384:]


def test_a_full_file_system_is_capacity_exceeded(spdk_target: BareTarget, tmp_path: Path, tmpfs: Path) -> None:
    volume = methods.aio_create("v", str(sparse(tmpfs / "v", 32 * MIB)), 512, uuid(1))
    error, written = write_until_it_fails(serve(spdk_target, tmp_path, volume))
    assert (error.status_type, error.code) == CAPACITY_EXCEEDED
    assert 0 < written <= 8 * MIB


def test_a_full_file_system_under_a_pool(spdk_target: BareTarget, tmp_path: Path, tmpfs: Path) -> None:
    base = methods.aio_create("base", str(sparse(tmpfs / "base", 32 * MIB)), 4096, uuid(1))
    pool = methods.lvstore_create("p", "base", MIB)
    thin = methods.lvol_create("v", "p", 24 * MIB, thin=True)
    error, _ = write_until_it_fails(serve(spdk_target, tmp_path, base, pool, thin, bdevs=("p/v",)))
    assert (error.status_type, error.code) == CAPACITY_EXCEEDED


def test_a_full_pool_is_capacity_exceeded(spdk_target: BareTarget, tmp_path: Path) -> None:
    base = methods.aio_create("base", str(sparse(tmp_path / "base", 32 * MIB)), 4096, uuid(1))
    pool = methods.lvstore_create("p", "base", MIB)
    thin = methods.lvol_create("v", "p", 64 * MIB, thin=True)
    served = serve(spdk_target, tmp_path, base, pool, thin, bdevs=("p/v",))
    error, written = write_until_it_fails(served)
    assert (error.status_type, error.code) == CAPACITY_EXCEEDED
    assert 24 * MIB < written < 32 * MIB
    # Room is there again, and used, when something has been given back.
    with initiator.connect(served) as connected, connected.queue(4, timeout=60) as queue:
        namespace, block = connected.namespace(1), connected.namespace(1).block_size
        queue.deallocate(namespace, [(0, 2 * MIB // block)]).wait()
        queue.write(namespace, written // block, b"\1" * TRANSFER).wait()


def served_mirror(target: BareTarget, directory: Path, *members: Path) -> Path:
    """A controller of a mirror of files in these directories, of 32 MiB each."""
    paths = [sparse(at / "v", 32 * MIB) for at in members]
    files = [methods.aio_create(f"m{number}", str(path), 4096, uuid(number)) for number, path in enumerate(paths)]
    mirror = methods.raid_create("v", "raid1", ["m0", "m1"], uuid(9))
    return serve(target, directory, *files, mirror)


def in_sync(target: BareTarget) -> list[str]:
    (mirror,) = call(target, Request("bdev_raid_get_bdevs", {"category": "online"}))[0]
    return [member["name"] for member in mirror["base_bdevs_list"] if member["is_configured"]]


def test_a_full_member_leaves_its_mirror(spdk_target: BareTarget, tmp_path: Path, tmpfs: Path) -> None:
    served = served_mirror(spdk_target, tmp_path, tmpfs, tmp_path)
    with initiator.connect(served) as connected, connected.queue(4, timeout=60) as queue:
        namespace, data, back = connected.namespace(1), b"\xff" * TRANSFER, bytearray(TRANSFER)
        for at in range(0, 12 * MIB, TRANSFER):
            queue.write(namespace, at // namespace.block_size, data).wait()
            queue.read(namespace, at // namespace.block_size, back).wait()
            assert back == data
    assert in_sync(spdk_target) == ["m1"]


def test_the_last_member_of_a_mirror_stays(spdk_target: BareTarget, tmp_path: Path, tmpfs: Path) -> None:
    """Both find their file systems full: the mirror answers as a file does, and goes on when there is room again."""
    with private_tmpfs("8m") as other:
        served = served_mirror(spdk_target, tmp_path, tmpfs, other)
        error, written = write_until_it_fails(served)
        assert (error.status_type, error.code) == CAPACITY_EXCEEDED
        assert len(in_sync(spdk_target)) == 1
        with initiator.connect(served) as connected, connected.queue(4, timeout=60) as queue:
            namespace, back = connected.namespace(1), bytearray(TRANSFER)
            block = namespace.block_size
            with pytest.raises(NvmeStatusError) as caught:
                queue.write(namespace, written // block, b"\1" * TRANSFER).wait()
            assert (caught.value.status_type, caught.value.code) == CAPACITY_EXCEEDED
            queue.deallocate(namespace, [(0, 2 * MIB // block)]).wait()
            queue.write(namespace, written // block, b"\1" * TRANSFER).wait()
            queue.read(namespace, written // block, back).wait()
            assert back == b"\1" * TRANSFER


def test_many_files_share_their_events(target_factory: TargetFactory, tmp_path: Path) -> None:
    """The machine has 65,536 by default; the kernel maps each context into the process that made it."""
    target = target_factory.start()
    names = tuple(f"v{number}" for number in range(16))
    files = [methods.aio_create(name, str(sparse(tmp_path / name, MIB)), 4096, uuid(n)) for n, name in enumerate(names)]
    with (
        initiator.connect(serve(target, tmp_path, *files, bdevs=names)) as connected,
        connected.queue(128, timeout=60) as queue,
    ):
        blocks = [bytes([16 * n + k]) * 4096 for n in range(16) for k in range(16)]
        spaces = connected.namespaces()
        queue.wait([queue.write(spaces[n // 16], n % 16, block) for n, block in enumerate(blocks)])
        back = initiator.allocate(256 * 4096)
        queue.wait([queue.read(spaces[n // 16], n % 16, back[n * 4096 : (n + 1) * 4096]) for n in range(len(blocks))])
        assert back.view == b"".join(blocks)
        contexts = Path(f"/proc/{target.process.pid}/maps").read_text().count("[aio]")
        assert 0 < contexts <= 4, "a context for each file"


def test_a_file_that_has_trouble_stays(spdk_target: BareTarget, tmp_path: Path) -> None:
    """Its size is 0 for a while: errors meanwhile, the same volume afterwards."""
    path = sparse(tmp_path / "v", MIB)
    served = serve(spdk_target, tmp_path, methods.aio_create("v", str(path), 512, uuid(1)))
    with initiator.connect(served) as connected, connected.queue(4, timeout=60) as queue:
        namespace, buffer = connected.namespace(1), bytearray(4096)
        os.truncate(path, 0)
        with pytest.raises(NvmeStatusError, match="INTERNAL DEVICE ERROR"):
            queue.read(namespace, 8, buffer).wait()
        os.truncate(path, MIB)
        assert [found["name"] for found in call(spdk_target, Request("bdev_get_bdevs", {}))[0]] == ["v"]
        queue.read(namespace, 8, buffer).wait()
