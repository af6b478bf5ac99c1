"""From a built SPDK tree to a prefix from which everything runs.

Owns what is in the prefix: what SPDK's `make install` puts there and what it leaves out (libvfio-user, bdevperf, the
fio that fits the plug-ins), and that every program finds its libraries without LD_LIBRARY_PATH.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nvmuser.errors import SetupError
from nvmuser.toolchain import proc
from nvmuser.toolchain.steps import Reporter

_PROMISED = (
    "bin/nvmf_tgt", "bin/spdk_tgt", "bin/spdk_nvme_perf", "bin/spdk_nvme_identify", "bin/bdevperf", "bin/fio",
    "lib/fio/spdk_nvme", "lib/fio/spdk_bdev", "lib/libvfio-user.so", "include/vfio-user/libvfio-user.h",
    "include/spdk/nvme.h", "share/sma/sma.proto", "share/sma/sma-client.py",
)  # fmt: skip


def install(tree: Path, work: Path, prefix: Path, staging: Path, reporter: Reporter) -> None:
    """Fill `staging`, which will be renamed to `prefix`."""
    reporter.update("installing", 0.96)
    destination = work / "destdir"
    shutil.rmtree(destination, ignore_errors=True)
    # The subdirectory `python` wants a packaging tool and network access, and PyPI has the package anyway: -o takes it
    # for done.
    command = ["make", "-o", "python", "install", f"DESTDIR={destination}"]
    proc.run(command, log=reporter.log, cwd=tree, env=proc.build_environment())
    shutil.copytree(destination / prefix.relative_to("/"), staging, symlinks=True, dirs_exist_ok=True)
    _add_left_out(tree, work, staging)
    for archive in (*staging.glob("lib/*.a"), *staging.glob("lib/*.la")):
        archive.unlink()
    reporter.update("making it relocatable", 0.98)
    for path in _elf_files(staging):
        _set_runpath(path, staging, reporter)
    missing = [name for name in _PROMISED if not (staging / name).exists()]
    if missing:
        raise SetupError(f"the build did not make {', '.join(missing)}")
    proc.output([staging / "bin/nvmf_tgt", "--version"])


def _add_left_out(tree: Path, work: Path, staging: Path) -> None:
    vfio_user = tree / "build/libvfio-user/usr/local"
    shutil.copytree(vfio_user / "lib", staging / "lib", symlinks=True, dirs_exist_ok=True)
    shutil.copytree(vfio_user / "include", staging / "include", dirs_exist_ok=True)
    shutil.copy(tree / "build/examples/bdevperf", staging / "bin")
    shutil.copy(work / "fio/fio", staging / "bin")
    (staging / "lib/fio").mkdir(exist_ok=True)
    for plugin in ("spdk_nvme", "spdk_bdev"):
        shutil.copy(tree / "build/fio" / plugin, staging / "lib/fio")
    # What speaks its Storage Management Agent's protocol, which `nvmuser sma` serves.
    (staging / "share/sma").mkdir(parents=True, exist_ok=True)
    for path in (*tree.glob("proto/*.proto"), tree / "scripts/sma-client.py"):
        shutil.copy(path, staging / "share/sma")


def _elf_files(staging: Path) -> Iterator[Path]:
    for path in sorted((*staging.glob("bin/*"), *staging.glob("lib/**/*"))):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def _set_runpath(path: Path, staging: Path, reporter: Reporter) -> None:
    up = os.path.relpath(staging / "lib", path.parent)
    runpath = "$ORIGIN" if up == "." else f"$ORIGIN/{up}"
    path.chmod(0o755)
    # RPATH, not RUNPATH: it also serves what a library needs, and LD_LIBRARY_PATH cannot override it.
    proc.run(["patchelf", "--force-rpath", "--set-rpath", runpath, path], log=reporter.log)
