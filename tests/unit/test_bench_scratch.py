"""What a benchmark leaves in /tmp: nothing, but what an error names."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nvmuser.bench.measure.scratch import scratch
from nvmuser.errors import GuestError

FILES = ("state/run/guest/a/cntrl", "vm/qemu.log", "vm/console.log")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def work(error: BaseException, *names: str) -> None:
    """A benchmark that makes these files and fails."""
    with scratch("x-") as root:
        filled(root, *names)
        raise error


def filled(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_nothing_is_left(tmp_path: Path) -> None:
    with scratch("x-") as root:
        filled(root, *FILES)
    assert list(tmp_path.iterdir()) == []


def test_logs_of_a_guest_that_failed_are_left(tmp_path: Path) -> None:
    with pytest.raises(GuestError):
        work(GuestError("no (logs in …/vm)"), *FILES)
    (root,) = tmp_path.iterdir()
    left = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert left == {"vm/console.log", "vm/qemu.log"}
    assert list(root.iterdir()) == [root / "vm"]


def test_an_error_without_a_guest_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(GuestError):
        work(GuestError("no"), "state/log/target.log")
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_wants_any_more_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(asyncio.CancelledError):
        work(asyncio.CancelledError(), *FILES)
    assert list(tmp_path.iterdir()) == []
