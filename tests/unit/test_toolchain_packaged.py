"""What is used where packages have installed SPDK and libvfio: theirs, and nothing of a cache."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nvmuser import paths
from nvmuser.errors import SetupError
from nvmuser.toolchain import artifact, bindings, cpu, find_libvfio, find_spdk, libvfio, spdk


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory as packages make it, which is still empty; the cache is full."""
    monkeypatch.delenv("NVMUSER_SPDK", raising=False)
    monkeypatch.setenv("NVMUSER_CACHE", str(tmp_path / "cache"))
    artifact_dir = spdk.artifact_dir(tmp_path / "cache")
    artifact_dir.mkdir(parents=True)
    artifact.write_manifest(artifact_dir, version="26.01", cpu_level="x86-64-v2")
    monkeypatch.setenv("NVMUSER_PREFIX", str(tmp_path / "usr"))
    return tmp_path / "usr"


def installed(directory: Path, **facts: str) -> None:
    directory.mkdir(parents=True)
    artifact.write_manifest(directory, **facts)


def test_a_packages_spdk_is_used_and_no_other(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SetupError, match="nvmuser-spdk"):
        find_spdk()
    installed(prefix / "spdk", version="26.05", cpu_level="x86-64-v2")
    assert find_spdk() == spdk.Spdk(prefix / "spdk", "26.05")
    assert spdk.is_done()
    monkeypatch.delenv("NVMUSER_PREFIX")
    assert find_spdk().version == "26.01"


def test_one_that_is_built_for_a_newer_cpu_is_refused(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(prefix / "spdk", version="26.05", cpu_level="x86-64-v3")
    monkeypatch.setattr(cpu, "level", lambda cpuinfo=None: "x86-64-v2")
    with pytest.raises(SetupError, match="built for x86-64-v3, and this CPU is x86-64-v2"):
        find_spdk()
    monkeypatch.setattr(cpu, "level", lambda cpuinfo=None: "x86-64-v3")
    assert find_spdk().version == "26.05"


def test_a_packages_libvfio_is_used_and_set_up_builds_none(prefix: Path) -> None:
    assert libvfio.is_done()
    with pytest.raises(SetupError, match="nvmuser-libvfio"):
        find_libvfio()
    installed(prefix / "libvfio")
    assert find_libvfio() == prefix / "libvfio/libvfio.so"


def test_a_packages_modules_lie_with_its_spdk(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, bindings.VFU.name, raising=False)
    installed(prefix / "spdk", version="26.05", cpu_level="x86-64-v2")
    assert bindings.is_done(bindings.VFU)
    with pytest.raises(SetupError, match="use the package's"):
        bindings.load(bindings.VFU)
    assert not bindings.is_built(bindings.VFU)
    (prefix / "spdk/bindings").mkdir()
    assert bindings._module(bindings.VFU, prefix / "spdk").parent == prefix / "spdk/bindings"


def test_a_checkout_uses_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVMUSER_PREFIX", raising=False)
    assert paths.packaged_dir() is None
    monkeypatch.setattr(paths, "__file__", "/usr/lib/python3/dist-packages/nvmuser/paths.py")
    assert paths.packaged_dir() == Path("/usr/lib/nvmuser")
