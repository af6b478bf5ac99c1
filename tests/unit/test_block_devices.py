"""What lies on one another in sysfs, as disks, partitions, LVM, RAID and loop devices appear there."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from nvmuser.errors import ConflictError
from nvmuser.hostfs import backing, block_devices, locks
from nvmuser.model.objects import Volume

DISK, ONE, TWO, LVM, MIRROR, LOOP, OTHER = (os.makedev(major, minor) for major, minor in (
    (8, 0), (8, 1), (8, 2), (253, 0), (9, 0), (7, 0), (8, 16)))  # fmt: skip
NAMES = {"sda": DISK, "sda1": ONE, "sda2": TWO, "dm-0": LVM, "md0": MIRROR, "loop0": LOOP, "sdb": OTHER}


def number(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A disk with two partitions: LVM on the first, half of a RAID on the second; a loop device on a file on LVM."""
    block, numbers = tmp_path / "block", tmp_path / "numbers"
    numbers.mkdir()
    for name, device in NAMES.items():
        directory = block / "sda" / name if name in ("sda1", "sda2") else block / name
        (directory / "slaves").mkdir(parents=True, exist_ok=True)
        (directory / "holders").mkdir(exist_ok=True)
        (directory / "dev").write_text(number(device) + "\n")
        (numbers / number(device)).symlink_to(directory)
        if name in ("sda1", "sda2"):
            (directory / "partition").write_text(name[-1])
    for upper, lower in (("dm-0", "sda/sda1"), ("md0", "sda/sda2"), ("md0", "sdb")):
        (block / upper / "slaves" / Path(lower).name).symlink_to(block / lower)
        (block / lower / "holders" / upper).symlink_to(block / upper)
    (block / "dm-0/dm").mkdir()
    (block / "dm-0/dm/name").write_text("vg-data\n")
    (tmp_path / "image").write_bytes(b"")
    (block / "loop0/loop").mkdir()
    (block / "loop0/loop/backing_file").write_text(f"{tmp_path}/image\n")
    (tmp_path / "mountinfo").write_text(f"36 1 {number(LVM)} / /srv/data rw - ext4 /dev/mapper/vg-data rw\n")
    (tmp_path / "swaps").write_text("Filename Type Size Used Priority\n/dev/sdb partition 1 0 -2\n")
    for name, value in (("_SYSFS", numbers), ("_MOUNTS", tmp_path / "mountinfo"), ("_SWAPS", tmp_path / "swaps")):
        monkeypatch.setattr(block_devices, name, value)
    real = os.stat

    def stat(path: str | Path, **rest: bool) -> os.stat_result:
        name = Path(path).name
        if str(path).startswith("/dev/") and name in NAMES:
            return os.stat_result((0o060660, 5, 6, 1, 0, 0, 0, 0, 0, 0), {"st_rdev": NAMES[name]})
        if Path(path) == tmp_path / "image":
            return os.stat_result((0o100600, 5, LVM, 1, 0, 0, 0, 0, 0, 0))
        return real(path, **rest)

    monkeypatch.setattr(os, "stat", stat)
    return tmp_path


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("sda", "sda1", "its path, /dev/sda1, lies on /dev/sda, which is volume a's"),
        ("sda1", "sda", "its path, /dev/sda, holds /dev/sda1, which is volume a's"),
        ("sda1", "sda2", ""),
        ("dm-0", "sda1", "its path, /dev/sda1, holds /dev/dm-0, which is volume a's"),
        ("sda", "dm-0", "its path, /dev/dm-0, lies on /dev/sda, which is volume a's"),
        ("dm-0", "sda2", ""),
        ("md0", "sdb", "its path, /dev/sdb, holds /dev/md0, which is volume a's"),
        ("md0", "dm-0", ""),
        ("sda1", "loop0", "its path, /dev/loop0, lies on /dev/sda1, which is volume a's"),
        ("loop0", "sda2", ""),
    ],
)
def test_what_lies_on_one_another_is_one_volumes(first: str, second: str, words: str) -> None:
    owners = backing.Owners()
    owners.claim(Volume("a", path=f"/dev/{first}"))
    if not words:
        owners.claim(Volume("b", path=f"/dev/{second}"))
        return
    with pytest.raises(ConflictError, match=re.escape(words)):
        owners.claim(Volume("b", path=f"/dev/{second}"))


def test_a_file_lies_on_its_file_system(machine: Path) -> None:
    image = str(machine / "image")
    for path, words in (("/dev/loop0", "lies on"), ("/dev/sda", "holds"), ("/dev/dm-0", "holds")):
        owners = backing.Owners()
        owners.claim(Volume("a", path=image))
        with pytest.raises(ConflictError, match=f"{path}, {words} {image}, which is volume a's"):
            owners.claim(Volume("b", path=path))


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sda", "sda1 is used by vg-data, sda2 is used by md0"),
        ("dm-0", "dm-0 is mounted at /srv/data"),
        ("sdb", "sdb is used by md0, sdb is swap space"),
        ("loop0", "`lsblk /dev/loop0` may show by what"),
    ],
)
def test_what_the_machine_uses_is_not_served(monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    def claimed(path: str, flags: int) -> int:
        assert flags & os.O_EXCL
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(os, "open", claimed)
    with pytest.raises(ConflictError, match=re.escape(f"/dev/{name}: in use by this machine: {words}; end that first")):
        locks.check_free(f"/dev/{name}")
