"""The wheel: complete, and as good as the checkout once it is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import nvmuser
from nvmuser.toolchain import libvfio, recipe, spdk

ROOT = Path(__file__).resolve().parents[2]
FACTS = """
import json
from nvmuser.toolchain import appliance, bindings, libvfio, recipe
print(json.dumps({
    "spdk": recipe.load().key, "libvfio": libvfio._artifact_dir().name, "guest": appliance._image_dir("trixie").name,
    "sources": [str(bindings._sources(binding)) for binding in bindings.ALL],
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (found,) = out.glob("*.whl")
    return found


def environment(directory: Path, *arguments: str | Path) -> Path:
    """A virtual environment in which pip has installed something; its bin."""
    venv.create(directory, with_pip=False)
    command = [sys.executable, "-m", "pip", "--python", str(directory / "bin/python"), "install", "--quiet"]
    subprocess.run([*command, "--disable-pip-version-check", *arguments], check=True)
    return directory / "bin"


def outside(*command: str | Path, cwd: Path) -> str:
    """What a command prints away from the checkout, which must not help."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, cwd=cwd, env=clean, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_everything_that_set_up_builds_from_is_in_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(
        ["git", "ls-files", "python/nvmuser", "nvmf_vfio", "spdk-glue"],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
    for name in listed.splitlines():
        if (ROOT / name).exists():
            inside = name.removeprefix("python/").replace("spdk-glue/", "nvmuser/spdk-glue/")
            assert inside in names, name


def test_what_is_installed_uses_the_same_parts_as_the_checkout(wheel: Path, tmp_path: Path) -> None:
    bin_dir = environment(tmp_path / "venv", "--no-deps", "--no-index", wheel)
    # What it depends on, of the environment of the tests, without the checkout, which is there by another line.
    packages = next((tmp_path / "venv/lib").glob("python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert outside(bin_dir / "nvmuser", "--version", cwd=tmp_path).split()[:3] == [
        "nvmuser,", "version", nvmuser.__version__
    ]  # fmt: skip
    facts = json.loads(outside(bin_dir / "python", "-c", FACTS, cwd=tmp_path))
    assert facts["spdk"] == recipe.load().key
    assert facts["libvfio"] == libvfio._artifact_dir().name
    assert all(Path(path).is_relative_to(packages) and Path(path).is_dir() for path in facts["sources"])
    doctor = subprocess.run(
        [bin_dir / "nvmuser", "doctor", "--json"], cwd=tmp_path, stdout=subprocess.PIPE, check=False
    )
    (found,) = (check for check in json.loads(doctor.stdout)["checks"] if check["name"] == "SPDK")
    assert str(spdk.find_spdk().prefix) in found["finding"]
    without = subprocess.run(
        [bin_dir / "nvmuser", "doctor", "--json"], cwd=tmp_path, stdout=subprocess.PIPE, check=False,
        env=os.environ | {"NVMUSER_CACHE": str(tmp_path / "none")},
    )  # fmt: skip
    (found,) = (check for check in json.loads(without.stdout)["checks"] if check["name"] == "SPDK")
    assert found["fix"] == "nvmuser setup", "there is no make where there is no checkout"


@pytest.mark.matrix
def test_pip_gets_all_that_it_depends_on(wheel: Path, tmp_path: Path) -> None:
    bin_dir = environment(tmp_path / "venv", wheel)
    state = ("--state-dir", tmp_path / "state")
    for name in ("one", "two"):
        outside(bin_dir / "nvmuser", *state, "volume", "create", name, "--size", "1M", cwd=tmp_path)
    listed = json.loads(outside(bin_dir / "nvmuser", *state, "volume", "list", "--json", cwd=tmp_path))
    assert [volume["name"] for volume in listed] == ["one", "two"]
