"""Logs: bounded while they are written to, read from their end, followed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nvmuser.errors import NotFoundError
from nvmuser.supervisor.logs import Limits, follow, rotate, tail


def test_small_ones_are_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "target.log"
    assert not rotate(log, Limits(10, 2))
    log.write_text("123456789")
    assert not rotate(log, Limits(10, 2))
    assert os.listdir(tmp_path) == ["target.log"]


def test_put_aside_while_it_is_written_to(tmp_path: Path) -> None:
    """By a process that keeps it open."""
    log = tmp_path / "target.log"
    with log.open("ab", buffering=0) as writer:
        for number in range(5):
            writer.write(f"line {number}\n".encode() * 10)
            assert rotate(log, Limits(50, 2))
            assert log.stat().st_size == 0
        writer.write(b"last\n")
    assert sorted(os.listdir(tmp_path)) == ["target.log", "target.log.1", "target.log.2"]
    assert (tmp_path / "target.log.1").read_text() == "line 4\n" * 10
    assert (tmp_path / "target.log.2").read_text() == "line 3\n" * 10
    assert log.read_text() == "last\n"


def test_none_are_kept(tmp_path: Path) -> None:
    (tmp_path / "target.log").write_text("x" * 100)
    assert rotate(tmp_path / "target.log", Limits(50, 0))
    assert os.listdir(tmp_path) == ["target.log"]


def test_without_room_for_a_copy_it_is_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(_path: Path, copy: Path) -> None:
        copy.write_text("half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", copy)
    (tmp_path / "target.log").write_text("x" * 100)
    assert rotate(tmp_path / "target.log", Limits(50, 2))
    assert (tmp_path / "target.log").stat().st_size == 0
    assert os.listdir(tmp_path) == ["target.log"]


@pytest.mark.parametrize("lines", [1, 2, 1000, 5000, 10**6])
def test_tail(tmp_path: Path, lines: int) -> None:
    log = tmp_path / "target.log"
    whole = [f"{number} {'x' * (number % 97)}" for number in range(5000)]
    log.write_text("\n".join(whole) + "\n")
    assert tail(log, lines) == (whole[-lines:], log.stat().st_size)
    log.write_text("\n".join(whole))
    assert tail(log, lines)[0] == whole[-lines:]


def test_tail_reads_only_the_end(tmp_path: Path) -> None:
    """Of a log of a terabyte."""
    log = tmp_path / "target.log"
    with log.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + b"line\n" * 60)
    assert tail(log, 50)[0] == ["line"] * 50


def test_no_log_yet(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such log yet"):
        tail(tmp_path / "target.log", 50)


def test_followed_across_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "target.log"
    log.write_text("one\ntwo\n")
    _, end = tail(log, 1)
    lines = follow(log, end, interval=0)
    with log.open("ab", buffering=0) as writer:
        writer.write(b"three\n")
        assert next(lines) == "three\n"
        rotate(log, Limits(1, 1))
        writer.write(b"four\n")
        assert next(lines) == "four\n"
