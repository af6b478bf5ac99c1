"""Fixtures as a ladder: `debs` (built once) → `container` (a fresh Debian of this machine's release, with systemd)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from container import Container, booted, bootstrap

from nvmuser.paths import cache_dir

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def debs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of this checkout, and in `next` the same as a later version."""
    out = tmp_path_factory.mktemp("debs")
    tree = out / "nvmuser"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, stdout=subprocess.PIPE,
    ).stdout  # fmt: skip
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    command = ["dpkg-buildpackage", "--build=binary", "--unsigned-changes", "--no-check-builddeps"]
    subprocess.run(command, cwd=tree, check=True, env={**os.environ, "NVMUSER_PYTHON": sys.executable})
    (out / "next").mkdir()
    for package in out.glob("*.deb"):
        _later(package, out / "next")
    return out


def _later(package: Path, directory: Path) -> None:
    name, _, rest = package.name.partition("_")
    content = directory / "content"
    subprocess.run(["dpkg-deb", "-R", package, content], check=True)
    version = rest.partition("_")[0]
    control = content / "DEBIAN/control"
    control.write_text(control.read_text().replace(version, f"{version}+next"))
    later = directory / f"{name}_{rest.replace(version, f'{version}+next')}"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", content, later], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(content)


@pytest.fixture
def container(tmp_path: Path, debs: Path) -> Iterator[Container]:
    """A Debian in which nothing of ours has been yet; the packages are in /debs."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a service manager in namespaces of its own")
    root = tmp_path / "root"
    suite = subprocess.run(
        ["sh", "-c", ". /etc/os-release; echo $VERSION_CODENAME"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    bootstrap(suite, root)
    shutil.copytree(debs, root / "debs", ignore=shutil.ignore_patterns("nvmuser"))
    with booted(root, cache_dir(), tmp_path / "systemd.log") as container:
        yield container
