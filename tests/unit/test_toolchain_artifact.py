"""nvmuser.toolchain.artifact: an artifact is whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvmuser.toolchain import artifact


def test_a_product_appears_when_the_block_ends(tmp_path: Path) -> None:
    final = tmp_path / "cache/thing"
    with artifact.assembling(final) as staging:
        (staging / "file").write_text("x")
        artifact.write_manifest(staging, version="1")
        assert not final.exists()
    assert (final / "file").read_text() == "x"
    assert artifact.read_manifest(final) == {"version": "1"}
    assert [path.name for path in final.parent.iterdir()] == ["thing"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def assemble() -> None:
        with artifact.assembling(tmp_path / "thing") as staging:
            (staging / "file").write_text("x")
            raise error

    with pytest.raises(error):
        assemble()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_set_up_left_is_replaced(tmp_path: Path) -> None:
    leftover = tmp_path / "thing.partial"
    leftover.mkdir()
    (leftover / "half").write_text("x")
    with artifact.assembling(tmp_path / "thing") as staging:
        assert list(staging.iterdir()) == []
    assert not leftover.exists()


def test_an_unfinished_product_has_no_manifest(tmp_path: Path) -> None:
    assert artifact.read_manifest(tmp_path / "absent") is None


def test_remove_takes_directories_that_forbid_writing(tmp_path: Path) -> None:
    inner = tmp_path / "tree/inner"
    inner.mkdir(parents=True)
    (inner / "file").write_text("x")
    inner.chmod(0o555)
    artifact.remove(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_remove_does_not_follow_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/link").symlink_to(outside)
    artifact.remove(tmp_path / "tree")
    assert outside.stat().st_mode & 0o777 == 0o500


def test_digest_knows_where_a_part_ends() -> None:
    assert artifact.digest("ab", "c") != artifact.digest("a", "bc")
    assert artifact.digest("ab", b"c") == artifact.digest(b"ab", "c")
