"""A backing file that comes between the look at its path and the making of it belongs to somebody else."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from test_engine import MIB, engine_on, state  # noqa: F401 (a fixture)

from nvmuser.errors import ConflictError, SetupError, TargetError
from nvmuser.hostfs import files
from nvmuser.model.change import Change
from nvmuser.model.objects import Volume
from nvmuser.paths import StateDir


def owned(path: Path, size: int = 4 * MIB) -> Volume:
    return Volume("a", size=size, path=str(path), owned=True)


@pytest.mark.parametrize("content", [b"x", b"x" * 8 * MIB, bytes(4096)], ids=["short", "long", "zeroes"])
def test_somebody_elses_is_neither_truncated_nor_removed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(ConflictError, match=f"{path}: somebody made it meanwhile; move it away"):
        files.provision(owned(path))
    files.remove_unmade(owned(path))
    assert path.read_bytes() == content


@pytest.mark.parametrize("size", [0, MIB, 4 * MIB])
def test_an_interrupted_attempt_goes_on(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.truncate(size)
    files.provision(owned(path))
    assert path.stat().st_size == 4 * MIB
    files.remove_unmade(owned(path))
    assert not path.exists()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").touch()
    (tmp_path / "a").symlink_to("theirs")
    with pytest.raises(SetupError, match="Too many levels of symbolic links"):
        files.provision(owned(tmp_path / "a"))
    files.remove_unmade(owned(tmp_path / "a"))
    assert (tmp_path / "theirs").stat().st_size == 0
    assert (tmp_path / "a").is_symlink()


async def test_a_change_that_meets_one_leaves_it(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    path = state.root / "theirs"
    real = os.open

    def opened(name: str, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT and os.fspath(name) == str(path) and not path.exists():
            path.write_text("theirs")
        return real(name, flags, *mode)

    monkeypatch.setattr(os, "open", opened)
    with contextlib.closing(engine_on(state, None)) as engine:
        with contextlib.suppress(TargetError):
            await engine.change(Change(create=(Volume("a", size=4 * MIB, path=str(path)),)))
        assert not engine._store.load().volumes()
        assert path.read_text() == "theirs"
