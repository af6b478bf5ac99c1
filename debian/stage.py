"""Everything that the packages contain, in one directory (`debian/*.install` say where it goes).

    .venv/bin/python debian/stage.py DIRECTORY

Owns what of an installed SPDK, of Python packages that Debian does not have, and of the checkout is packaged. SPDK and
libvfio come from the cache of `nvmuser setup`; manual pages, completions and the list of parts are made here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import sbom

from nvmuser.cli import reference
from nvmuser.toolchain import artifact, bindings, find_libvfio, find_spdk, recipe
from nvmuser.toolchain.steps import Reporter

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "#!/usr/bin/python3 -P\nfrom nvmuser.cli.main import main\n\nmain()\n"
LEFT_OUT = ("*.pyc", "__pycache__", ".gitignore")
PROGRAMS = (
    "bdevperf", "fio", "nvmf_tgt", "spdk_dd", "spdk_nvme_discover", "spdk_nvme_identify", "spdk_nvme_perf", "spdk_tgt",
    "spdk_top", "spdk_trace", "spdk_trace_record", "vhost",
)  # fmt: skip
VENDORED = ("qemu", "spdk")
"""Packages of the virtual environment that neither Debian 12 nor 13 has; all are pure Python."""


def python(out: Path) -> None:
    """nvmuser, nvmf_vfio, and what Debian does not have."""
    leave_out = shutil.ignore_patterns(*LEFT_OUT)
    shutil.copytree(ROOT / "python/nvmuser", out / "nvmuser", ignore=leave_out)
    shutil.copytree(ROOT / "nvmf_vfio", out / "nvmf_vfio", ignore=leave_out)
    shutil.copytree(ROOT / "spdk-glue", out / "nvmuser/spdk-glue", ignore=leave_out)
    for name in VENDORED:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        for place in spec.submodule_search_locations:
            shutil.copytree(place, out / name, ignore=leave_out, dirs_exist_ok=True)
    for path in out.rglob("*.py"):
        path.chmod(0o644)


def spdk(out: Path, log: Path) -> None:
    """The target, the tools and their libraries, without what only building against them needs."""
    prefix = find_spdk().prefix
    (out / "bin").mkdir(parents=True)
    for name in PROGRAMS:
        shutil.copy2(prefix / "bin" / name, out / "bin")
    shutil.copytree(prefix / "lib", out / "lib", symlinks=True, ignore=shutil.ignore_patterns("pkgconfig", "*.a"))
    (out / "bindings").mkdir()
    for binding in bindings.ALL:
        bindings.build_into(binding, prefix, out / "bindings", Reporter(log), runpath="$ORIGIN/../lib")
    facts = artifact.read_manifest(prefix)
    assert facts is not None
    artifact.write_manifest(out, **facts)


def _copy(path: Path, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, directory / path.name, follow_symlinks=False)


def libvfio(out: Path) -> None:
    """libvfio.so, with its manifest."""
    shutil.copytree(find_libvfio().parent, out)


def completions(out: Path) -> None:
    """Scripts for three shells, each in a directory of its own."""
    for shell, name in {"bash": "nvmuser", "zsh": "_nvmuser", "fish": "nvmuser.fish"}.items():
        (out / shell).mkdir(parents=True)
        script = subprocess.run(
            [Path(sys.executable).with_name("nvmuser"), "completion", shell], check=True, stdout=subprocess.PIPE
        ).stdout
        (out / shell / name).write_bytes(script)


def main(out: Path) -> None:
    """Fill a directory, which is made anew."""
    os.environ["SOURCE_DATE_EPOCH"] = os.environ.get("SOURCE_DATE_EPOCH", "0")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    python(out / "python")
    spdk(out / "spdk", out / "log")
    libvfio(out / "libvfio")
    completions(out / "completions")
    reference.main(["man", str(out / "man")])
    (out / "bin").mkdir()
    (out / "bin/nvmuser").write_text(COMMAND)
    (out / "bin/nvmuser").chmod(0o755)
    facts = artifact.read_manifest(out / "spdk")
    assert facts is not None
    (out / "sbom.spdx.json").write_text(json.dumps(sbom.document(facts, recipe.load()), indent=2) + "\n")
    major, minor = sys.version_info[:2]
    modules = f"python3 (>= {major}.{minor}), python3 (<< {major}.{minor + 1})"
    (out / "substvars").write_text(f"nvmuser:Level={facts['cpu_level']}\npython:Depends={modules}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
