"""Images: a copy between a file and a namespace, sparse, resumed, on a real target."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from bare_target import BareTarget, TargetFactory
from raw_nvme import call, serve

from nvmuser.errors import UsageError
from nvmuser.images import formats, transfer
from nvmuser.images.checkpoint import Checkpoint, Copy
from nvmuser.images.transfer import CHUNK, Device

SIZE = 96 * CHUNK + 4096
DATA = {0: os.urandom(CHUNK), 70 * CHUNK + 512: os.urandom(3 * CHUNK), SIZE - 4096: b"end!" * 1024}


@pytest.fixture
def target(target_factory: TargetFactory, tmp_path: Path) -> BareTarget:
    """With a bdev `m` on a file."""
    target, backing = target_factory.start(), tmp_path / "m"
    with backing.open("wb") as file:
        file.truncate(128 * CHUNK)
    call(
        target,
        ("nvmf_create_transport", {"trtype": "VFIOUSER", "disable_mappable_bar0": True}),
        ("bdev_aio_create", {"name": "m", "filename": str(backing), "block_size": 512, "fallocate": True}),
    )
    return target


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset, data in DATA.items():
            file.seek(offset)
            file.write(data)
    return path


def test_there_and_back_in_pieces_without_what_is_zero(target: BareTarget, image: Path, tmp_path: Path) -> None:
    source, digest = os.open(image, os.O_RDONLY), hashlib.sha256(image.read_bytes()).hexdigest()
    with Device.open(serve(target, tmp_path / "c", "m").parent) as device:
        done: list[int] = []
        # As an import that is interrupted at the first piece, and goes on.
        transfer.from_file(source, device, 0, transfer.SYNC, done.append)
        assert done == [transfer.SYNC]
        transfer.from_file(source, device, done[-1], SIZE, done.append)
        assert done[-1] == SIZE
        assert (tmp_path / "m").stat().st_blocks * 512 < SIZE // 4
        assert transfer.digest_of_device(device, SIZE, done.append) == digest
        assert transfer.digest_of_file(source, SIZE, done.append) == digest
        back = os.open(tmp_path / "back", os.O_RDWR | os.O_CREAT)
        transfer.to_file(device, back, 0, SIZE, done.append)
        assert transfer.digest_of_file(back, SIZE, done.append) == digest
        assert os.fstat(back).st_blocks * 512 < SIZE // 4
        for number in (source, back):
            os.close(number)


def test_another_image_is_not_resumed(image: Path, tmp_path: Path) -> None:
    def checkpoint() -> Checkpoint:
        return Checkpoint(tmp_path / "transfers", Copy.of("import", "uuid", image, SIZE))

    assert checkpoint().load() == 0
    checkpoint().save(transfer.SYNC)
    assert checkpoint().load() == transfer.SYNC
    os.utime(image, (1, 1))
    assert checkpoint().load() == 0


def test_a_qcow2_that_names_other_files_is_refused(image: Path, tmp_path: Path) -> None:
    qcow2, raw = tmp_path / "a.qcow2", tmp_path / "raw"
    formats.from_raw(image, qcow2)
    formats.to_raw(qcow2, raw)
    assert raw.read_bytes() == image.read_bytes()
    assert [formats.format_of(path) for path in (image, qcow2)] == ["raw", "qcow2"]
    with qcow2.open("r+b") as file:  # backing_file_offset and backing_file_size of the header
        file.seek(8)
        file.write((512).to_bytes(8, "big") + (11).to_bytes(4, "big"))
        file.seek(512)
        file.write(b"/etc/passwd")
    with pytest.raises(UsageError, match="needs another file, /etc/passwd"):
        formats.to_raw(qcow2, raw)
    with pytest.raises(UsageError):
        formats.to_raw(image, raw)
