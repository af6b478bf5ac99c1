"""The release checklist finds what must not be released."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = ("ci/release-check", "pyproject.toml", "python/nvmuser/__init__.py", "debian/changelog")
PATCHES = "spdk-glue/patches"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What the quick checks look at, as it is on the day of a release."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / PATCHES, tmp_path / PATCHES)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 0.1.0\n\n### Added\n- All.\n")
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


def check(tree: Path) -> tuple[int, str]:
    command = [sys.executable, tree / "ci/release-check", "--quick"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stdout


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(tree: Path) -> None:
        text = (tree / name).read_text()
        assert old in text
        (tree / name).write_text(text.replace(old, new))

    return change


def test_a_release_that_is_right(tree: Path) -> None:
    names = ("the tree is clean", "one version everywhere", "the changelog is complete", "the patch series")
    assert check(tree) == (0, "".join(f"✓ {name}\n" for name in names))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (replaced("debian/changelog", "0.1.0", "0.2.0"), "✗ one version everywhere"),
        (replaced("CHANGELOG.md", "## Unreleased\n", "## Unreleased\n- More.\n"), "✗ the changelog is complete"),
        (replaced("CHANGELOG.md", "- All.\n", ""), "✗ the changelog is complete: nothing under ### Added"),
        (replaced(f"{PATCHES}/series", "0001", "9001"), "✗ the patch series: the series is not sorted"),
        (replaced("pyproject.toml", "nvmuser", "other"), "✗ the tree is clean"),
    ],
)
def test_what_must_not_be_released(tree: Path, change: Callable[[Path], None], line: str) -> None:
    change(tree)
    status, text = check(tree)
    assert status == 1
    assert line in text
