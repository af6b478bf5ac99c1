"""SPDK's module for images in Ceph (RBD): a shared object beside SPDK, loaded only into targets with such volumes.

Owns how it is built, from SPDK's own source with our patches (spdk-glue/rbd) and against the machine's librbd, and
where it lies. The SPDK that set-up builds knows nothing of Ceph, and does without.
"""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from nvmuser.errors import SetupError
from nvmuser.paths import cache_dir
from nvmuser.toolchain import artifact, proc, recipe, spdk, spdk_build
from nvmuser.toolchain.steps import Reporter

MODULE = "bdev_rbd.so"
_SOURCE = "module/bdev/rbd"
_HEADERS = (Path("/usr/include/rbd/librbd.h"), Path("/usr/include/rados/librados.h"))
_LIBRARIES = ("bdev", "json", "jsonrpc", "rpc", "log", "thread", "util", "env_dpdk")
_KEPT = 6
_VERSION = re.compile(r"#define LIB(RBD|RADOS)_VER_(?:MAJOR|MINOR|EXTRA)\s+(\d+)")


def _source_dir() -> Path:
    """The module as SPDK has it; of which package, not with which patches."""
    current = recipe.load()
    return cache_dir() / f"rbd-source-{current.version}-{artifact.digest(current.package, *current.accepted)}"


def _patches() -> tuple[Path, ...]:
    return recipe.series(recipe.glue_dir() / "rbd/patches")


def librbd_version() -> str:
    """Of the headers that are installed, such as 1.16.0.

    :raises SetupError: they are not there.
    """
    if missing := [path for path in _HEADERS if not path.exists()]:
        raise SetupError(f"{missing[0]} is missing: `apt-get install librbd-dev`, or another distribution's package")
    found = _VERSION.findall(_HEADERS[0].read_text(encoding="utf-8", errors="replace"))
    return ".".join(number for which, number in found if which == "RBD")


def _artifact_dir() -> Path:
    """:raises SetupError: there is no SPDK, or no librbd."""
    prefix = spdk.find_spdk().prefix
    built = (prefix / "bin/nvmf_tgt").stat().st_mtime_ns
    parts = [part for patch in _patches() for part in (patch.name, patch.read_bytes())]
    return cache_dir() / f"rbd-{artifact.digest(librbd_version(), str(prefix), str(built), *parts)}"


def find_module(prefix: Path) -> Path:
    """The shared object for the SPDK in `prefix`, which LD_PRELOAD loads.

    :raises SetupError: set-up has not built it for this SPDK.
    """
    try:
        directory = _artifact_dir()
    except SetupError as error:
        raise SetupError(f"volumes in Ceph need SPDK's module for them: {error}") from None
    facts = artifact.read_manifest(directory)
    if facts is None or facts["spdk"] != str(prefix):
        raise SetupError(
            f"SPDK's module for volumes in Ceph has not been built for {prefix}: run `nvmuser setup --with rbd`"
        )
    return directory / MODULE


def source_done() -> bool:
    """Whether the module's source is unpacked."""
    return artifact.read_manifest(_source_dir()) is not None


def fetch_source(reporter: Reporter) -> None:
    """Unpack it from the source package that SPDK comes from; that is fetched again where it is no longer there."""
    tarball = spdk_build.tarball(reporter)
    wanted = recipe.load()
    reporter.update(f"unpacking {_SOURCE}", 0.5)
    with artifact.assembling(_source_dir()) as root:
        strip = 1 + len(Path(wanted.subtree).parts) + len(Path(_SOURCE).parts)
        proc.run(
            ["tar", "-x", "-f", tarball, "-C", root, f"--strip-components={strip}", "--no-same-owner", "--wildcards",
             f"*/{wanted.subtree}/{_SOURCE}/*"],
            log=reporter.log,
        )  # fmt: skip
        artifact.write_manifest(root, tarball=tarball.name)


def is_done() -> bool:
    """Whether it is built for the SPDK in use."""
    return spdk.is_done() and _HEADERS[0].exists() and artifact.read_manifest(_artifact_dir()) is not None


def build(reporter: Reporter) -> None:
    """Patch and compile it.

    :raises SetupError: librbd's headers are missing, or this SPDK is not the one that set-up builds.
    """
    prefix = spdk.find_spdk().prefix
    if prefix != spdk.artifact_dir(cache_dir()):
        raise SetupError(f"{prefix}: the module is built for the SPDK of `make setup` alone: unset NVMUSER_SPDK")
    final = _artifact_dir()
    with artifact.assembling(final) as root, TemporaryDirectory(prefix="nvmuser-rbd-") as work:
        sources = sorted(_source_dir().glob("*.[ch]"))
        for path in sources:
            (Path(work) / path.name).write_bytes(path.read_bytes())
        for patch in _patches():
            reporter.update(f"applying {patch.name}", 0.2)
            command: list[str | Path] = ["patch", "-p1", "--batch", "--forward", "-i", patch, "-d", work]
            proc.run(command, log=reporter.log)
        reporter.update("compiling", 0.5)
        proc.run(_compile(prefix, Path(work), root / MODULE), log=reporter.log)
        artifact.write_manifest(root, spdk=str(prefix), librbd=librbd_version())
    artifact.forget_older(final.parent, "rbd-[0-9a-f]*", _KEPT)


def _compile(prefix: Path, work: Path, out: Path) -> list[str | Path]:
    libraries = prefix / "lib"
    return [
        "gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-fPIC", "-shared", f"-I{prefix / 'include'}",
        f"-I{work}", *sorted(work.glob("*.c")), "-o", out, f"-L{libraries}", f"-Wl,-rpath,{libraries}",
        # RPATH, which also serves the libraries that these need; and nothing may be left undefined.
        "-Wl,--disable-new-dtags", "-Wl,-z,defs", *(f"-lspdk_{name}" for name in _LIBRARIES), "-lrbd", "-lrados",
    ]  # fmt: skip
