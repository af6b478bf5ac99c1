"""libvfio from outside: the device directories that its command line needs, and what the built library exports."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from nvmf_vfio import vfio_dir

SOURCE = Path(__file__).parents[2] / "nvmf_vfio/libvfio"


def test_directory_is_what_qemu_reads(tmp_path: Path) -> None:
    directory = vfio_dir.make(tmp_path / "run/vfio", 7, tmp_path / "c1/cntrl")
    assert directory == tmp_path / "run/vfio/7"
    assert (directory / "iommu_group").readlink().name == "7"
    assert (directory / "cntrl").readlink() == tmp_path / "c1/cntrl"
    assert vfio_dir.socket_of(tmp_path / "run/vfio", 7) == tmp_path / "c1/cntrl"


def test_socket_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    directory = vfio_dir.make(Path("vfio"), 1, Path("here/cntrl"))
    assert (directory / "cntrl").readlink() == tmp_path / "here/cntrl"


def test_made_again_points_elsewhere(tmp_path: Path) -> None:
    vfio_dir.make(tmp_path, 3, Path("/a/cntrl"))
    vfio_dir.make(tmp_path, 3, Path("/b/cntrl"))
    assert vfio_dir.socket_of(tmp_path, 3) == Path("/b/cntrl")
    assert sorted(p.name for p in (tmp_path / "3").iterdir()) == ["cntrl", "iommu_group"]


@pytest.mark.parametrize("number", [-1, 2**31])
def test_impossible_number(tmp_path: Path, number: int) -> None:
    with pytest.raises(ValueError, match="group's number"):
        vfio_dir.make(tmp_path, number, Path("/a/cntrl"))
    assert not list(tmp_path.iterdir())


def test_a_real_socket_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "3").mkdir()
    (tmp_path / "3/cntrl").touch()
    with pytest.raises(ValueError, match="in the way"):
        vfio_dir.make(tmp_path, 3, Path("/a/cntrl"))
    assert (tmp_path / "3/cntrl").is_file()


def test_remove(tmp_path: Path) -> None:
    vfio_dir.make(tmp_path, 3, Path("/a/cntrl"))
    vfio_dir.remove(tmp_path, 3)
    assert not list(tmp_path.iterdir())
    vfio_dir.remove(tmp_path, 3)


def test_remove_keeps_what_is_not_ours(tmp_path: Path) -> None:
    vfio_dir.make(tmp_path, 3, Path("/a/cntrl"))
    (tmp_path / "3/notes").touch()
    with pytest.raises(ValueError, match="something else"):
        vfio_dir.remove(tmp_path, 3)
    assert (tmp_path / "3/notes").exists()


def test_numbers_are_kept_and_filled(tmp_path: Path) -> None:
    root = tmp_path / "vfio"
    assert vfio_dir.numbers(root) == {}
    devices = vfio_dir.Devices(root)
    assert [devices.assign(Path(f"/{name}/cntrl")).name for name in "ab"] == ["1", "2"]
    again = vfio_dir.Devices(root)
    assert again.assign(Path("/b/cntrl"), first=7) == root / "2"
    assert vfio_dir.numbers(root) == {1: Path("/a/cntrl"), 2: Path("/b/cntrl")}
    again.forget(Path("/a/cntrl"))
    again.forget(Path("/a/cntrl"))
    assert again.assign(Path("/c/cntrl"), first=2).name == "3"
    assert again.assign(Path("/d/cntrl")).name == "1"


def test_what_is_in_the_way_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    assert vfio_dir.Devices(tmp_path).assign(Path("/a/cntrl")).name == "2"


def trapped() -> set[str]:
    """The table in traps.h."""
    return set(re.findall(r"TRAP\((\w+)\)", (SOURCE / "traps.h").read_text())) - {"symbol"}


def test_exports_are_the_table(tmp_path: Path) -> None:
    out = tmp_path / "build"
    make = ["make", "-j2", "-C", str(SOURCE), f"OUT={out}", "CFLAGS=-O0"]
    built = subprocess.run(make, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    lines = subprocess.run(
        ["nm", "-D", "--defined-only", out / "libvfio.so"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {line.split()[-1] for line in lines} == trapped()
    needed = subprocess.run(
        ["nm", "-D", "--undefined-only", out / "libvfio.so"], capture_output=True, text=True, check=True
    )
    versions = {tuple(map(int, found.split("."))) for found in re.findall(r"@GLIBC_([\d.]+)", needed.stdout)}
    # Whatever it is built with, a QEMU that brings Debian 12's C library (2.36) loads it.
    assert (2, 2, 5) in versions or (2, 17) in versions
    assert max(versions) <= (2, 36)
