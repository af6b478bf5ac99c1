"""Fixtures as a ladder: `suite` → `workshop` → `debs` (built once for each) → `container` (with systemd)."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from container import Container, booted, bootstrap
from workshop import Here, Workshop

from nvmuser.paths import cache_dir

ROOT = Path(__file__).resolve().parents[2]
SUITES = ("bookworm", "trixie")
"""Of Debian 12 and 13."""


@pytest.fixture(scope="session", params=SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    """The Debian release that packages are for."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a service manager in namespaces of its own")
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def workshop(suite: str, tmp_path_factory: pytest.TempPathFactory) -> Here | Workshop:
    """Where they are built."""
    ours = platform.freedesktop_os_release()["VERSION_CODENAME"]
    return Here() if suite == ours else Workshop(suite, tmp_path_factory.mktemp("workshop") / "root", cache_dir())


@pytest.fixture(scope="session")
def debs(workshop: Here | Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    workshop.build(tree, out)
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
def container(tmp_path: Path, suite: str, debs: Path) -> Iterator[Container]:
    """A Debian in which nothing of ours has been yet; the packages are in /debs."""
    root = tmp_path / "root"
    bootstrap(suite, root)
    shutil.copytree(debs, root / "debs", ignore=shutil.ignore_patterns("nvmuser"))
    with booted(root, cache_dir(), tmp_path / "systemd.log") as container:
        yield container
