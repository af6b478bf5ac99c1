"""What the bench commands refuse, in one line, before anything is started or left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nvmuser.bench.measure import disks
from nvmuser.bench.scenarios import demo
from nvmuser.cli.bench import bench
from nvmuser.errors import NvmuserError, TargetNotRunning, UsageError
from nvmuser.guest.agent import CommandResult
from nvmuser.paths import StateDir


def invoke(*arguments: str, state: Path | None = None) -> Any:
    return CliRunner().invoke(bench, arguments, obj=StateDir(state or Path("/none")), catch_exceptions=False)


def test_every_command_has_help() -> None:
    names = [line.split()[0] for line in invoke("--help").output.partition("Commands:")[2].splitlines() if line.strip()]
    assert {"compare", "demo", "diff", "guest", "report", "tune"} <= set(names)
    for name in ("compare", "demo", "diff", "guest", "report", "tune"):
        assert invoke(name, "--help").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["guest", "--rw", "sideways"], "not a mode"),
        (["guest", "--bs", "4q"], "not a size"),
        (["guest", "--job", "/nowhere.fio"], "cannot read"),
        (["guest", "--verify", "crc32c", "--rw", "randrw"], "only writes"),
        (["guest", "--runtime", "0"], "measures nothing"),
        (["guest", "--poll", "--ioengine", "libaio"], "io_uring"),
        (["guest", "--memory", "much"], "expected a number of bytes"),
        (["guest", "--controller", "a", "--controller", "a"], "twice"),
        (["guest", "--via", "smoke"], "--via 'smoke': native, libvfio"),
        (["guest", "--via", ""], "native, libvfio"),
        (["guest", "--via", "libvfio,native", "--controller", "a"], "on disks of their own"),
        (["guest", "--via", "libvfio,native", "--verify", "crc32c"], "on disks of their own"),
    ],
)
def test_guest_options_that_contradict(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        invoke(*arguments, "--output", str(tmp_path / "out"), state=tmp_path)
    assert not (tmp_path / "out").exists()


def test_guest_on_a_controller_without_a_target(tmp_path: Path) -> None:
    with pytest.raises(TargetNotRunning, match="target start"):
        invoke("guest", "--controller", "vm1", "--output", str(tmp_path / "out"), state=tmp_path)


def test_no_room_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(NvmuserError, match="1 MiB are needed"):
        disks.fill(tmp_path / "none" / "disk", 1 << 20)
    assert not list(tmp_path.iterdir())


def test_filled_file_has_its_size(tmp_path: Path) -> None:
    disks.fill(tmp_path / "disk", (5 << 20) + 512)
    stat = (tmp_path / "disk").stat()
    assert stat.st_size == (5 << 20) + 512
    assert stat.st_blocks * 512 >= stat.st_size


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="choose another --output"):
        disks.output_directory(tmp_path / "file" / "out")


class FakeGuest:
    def __init__(self, found: bytes) -> None:
        self.found = found

    async def run(self, command: str, **_options: object) -> CommandResult:
        assert command.startswith("blkid -p")
        return CommandResult(0 if self.found else 2, self.found, b"")


async def test_foreign_data_are_not_overwritten() -> None:
    with pytest.raises(UsageError, match=r"/dev/nvme0n1 in the guest holds data \(ext4\): pass --overwrite"):
        await demo.refuse_foreign_data(FakeGuest(b"ext4\n"), ["/dev/nvme0n1"])  # type: ignore[arg-type]
    await demo.refuse_foreign_data(FakeGuest(b""), ["/dev/nvme0n1"])  # type: ignore[arg-type]
