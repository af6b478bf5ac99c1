"""Which SPDK is used: the one that $NVMUSER_SPDK names, a package's, or the one that set-up built.

Owns where it lies and whether it can be used. `nvmuser.toolchain.spdk_build` builds it; `nvmuser.supervisor` runs it.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from nvmuser.errors import SetupError
from nvmuser.paths import SETUP, cache_dir, packaged_dir
from nvmuser.toolchain import artifact, cpu, proc, recipe

TRANSPORT_SYMBOL = b"spdk_nvmf_transport_vfio_user"
"""The transport's operations in lib/nvmf/vfio_user.c: in the library, or in a statically linked target."""


@dataclass(frozen=True)
class Spdk:
    """An installed SPDK with the vfio-user transport."""

    prefix: Path
    version: str

    def binary(self, name: str) -> Path:
        """bin/NAME: nvmf_tgt, spdk_tgt, spdk_nvme_perf, bdevperf …

        :raises SetupError: this SPDK has no such program.
        """
        path = self.prefix / "bin" / name
        if not path.exists():
            raise SetupError(f"{self.prefix} has no {name}: it is in the SPDK that `{SETUP}` builds")
        return path

    @property
    def fio_plugin(self) -> Path:
        """SPDK's fio engine for NVMe drivers in user space; it wants the fio in `binary("fio")`.

        :raises SetupError: this SPDK has none.
        """
        path = self.prefix / "lib/fio/spdk_nvme"
        if not path.exists():
            raise SetupError(f"{self.prefix} has no fio plug-in (SPDK's configure --with-fio)")
        return path


def artifact_dir(cache: Path) -> Path:
    """Where set-up installs SPDK: the name changes with the recipe, the patches and the CPU level."""
    current = recipe.load()
    return cache / f"spdk-{current.version}-{current.key}"


def default_prefix() -> Path:
    """Where the SPDK lies that is used unless another is named: a package's, or set-up's."""
    packaged = packaged_dir()
    return packaged / "spdk" if packaged else artifact_dir(cache_dir())


def find_spdk() -> Spdk:
    """The SPDK to use.

    :raises SetupError: $NVMUSER_SPDK cannot be used, set-up has not run, or the package is not for this CPU.
    """
    if named := os.environ.get("NVMUSER_SPDK"):
        try:
            return check_prefix(Path(named))
        except SetupError as error:
            raise SetupError(f"NVMUSER_SPDK={error}") from None
    prefix = default_prefix()
    facts = artifact.read_manifest(prefix)
    if facts is None:
        way_out = "install the package nvmuser-spdk" if packaged_dir() else f"run `{SETUP}`"
        raise SetupError(f"SPDK is not in {prefix.parent}: {way_out}, or set NVMUSER_SPDK to an installed one")
    if packaged_dir() and not cpu.runs(facts["cpu_level"]):
        raise SetupError(f"{prefix} is built for {facts['cpu_level']}, and this CPU is {cpu.level()}: build another")
    return Spdk(prefix, facts["version"])


@functools.cache
def check_prefix(prefix: Path) -> Spdk:
    """An SPDK built elsewhere, checked to have the vfio-user transport and to run.

    :raises SetupError: it has no such transport, or does not run.
    """
    target = prefix / "bin/nvmf_tgt"
    if not target.exists():
        raise SetupError(f"{prefix}: no SPDK, there is no bin/nvmf_tgt in it")
    if facts := artifact.read_manifest(prefix):
        return Spdk(prefix, facts["version"])  # ours: a package's has lost its symbols
    candidates = [target, *sorted(prefix.glob("lib*/libspdk_nvmf.so*")), *sorted(prefix.glob("lib/*/libspdk_nvmf.so*"))]
    if not any(TRANSPORT_SYMBOL in path.read_bytes() for path in candidates):
        raise SetupError(f"{prefix}: SPDK built without the vfio-user transport (configure --with-vfio-user)")
    match = re.search(r"SPDK v(\d+\.\d+)", proc.output([target, "--version"], timeout=20))
    return Spdk(prefix, match[1] if match else "unknown")


def is_done() -> bool:
    """Whether there is an SPDK to use."""
    try:
        find_spdk()
    except SetupError:
        # A named SPDK that cannot be used is an error of its own, not something to build.
        if os.environ.get("NVMUSER_SPDK"):
            raise
        return False
    return True
