"""libvfio.so, with which a QEMU that only knows the kernel's VFIO uses our controllers: built from the C source here.

Owns where it lies, how it is built, and how a program is started with it. nvmf_vfio/libvfio/README.md describes what it
does.
"""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import nvmf_vfio
from nvmuser.errors import SetupError
from nvmuser.paths import SETUP, cache_dir, packaged_dir
from nvmuser.toolchain import artifact, proc
from nvmuser.toolchain.steps import Reporter

NAME = "libvfio.so"
_SEPARATORS = frozenset(": \t\n")
"""ld.so(8): what divides the entries of LD_PRELOAD; nothing escapes them."""


def source_dir() -> Path:
    """In the repository, or in the installed package."""
    return Path(nvmf_vfio.__file__).parent / "libvfio"


def _artifact_dir() -> Path:
    if packaged := packaged_dir():
        return packaged / "libvfio"
    source = source_dir()
    files = sorted([*source.glob("*.[ch]"), source / "Makefile"])
    parts = [part for path in files for part in (path.name, path.read_bytes())]
    # It must not need a newer C library than the one that it was built with.
    return cache_dir() / f"libvfio-{artifact.digest(*parts, *platform.libc_ver(), platform.machine())}"


def find_libvfio() -> Path:
    """The library.

    :raises SetupError: set-up has not run since its source changed, or its path cannot be preloaded.
    """
    directory = _artifact_dir()
    if artifact.read_manifest(directory) is None:
        way_out = "install the package nvmuser-libvfio" if packaged_dir() else f"run `{SETUP}`"
        raise SetupError(f"{NAME} is not in {directory.parent}: {way_out}")
    if _SEPARATORS & set(str(directory)):
        raise SetupError(f"{directory}: LD_PRELOAD takes no path with a space or a colon: set NVMUSER_CACHE to another")
    return directory / NAME


def preload() -> str:
    """`LD_PRELOAD=…`, for env(1) or a shell. What is preloaded already stays, behind ours.

    :raises SetupError: see `find_libvfio`.
    """
    return "LD_PRELOAD=" + ":".join(filter(None, (str(find_libvfio()), os.environ.get("LD_PRELOAD"))))


def is_done() -> bool:
    """Whether set-up has nothing left to do for the library: a package's is not its own."""
    return packaged_dir() is not None or artifact.read_manifest(_artifact_dir()) is not None


def build(reporter: Reporter) -> None:
    """Compile it."""
    # Not in the cache, whose path may hold a space, which make cannot handle.
    with artifact.assembling(_artifact_dir()) as root, TemporaryDirectory(prefix="nvmuser-libvfio-") as objects:
        proc.run(["make", "-C", str(source_dir()), f"OUT={objects}"], log=reporter.log)
        shutil.copyfile(Path(objects) / NAME, root / NAME)
        artifact.write_manifest(root, libc=" ".join(platform.libc_ver()))
