"""The cffi modules over SPDK's libraries: how they are built, and how they are found.

Owns the cache's `bindings/`, one directory a module, named by all that the module depends on. A module is loaded from
there by path: nothing is put into site-packages. What a module offers is decided in spdk-glue, by its sources alone:
`cdefs.h` is what cffi parses, `glue.h` what the compiler sees, and each `*.c` beside them is compiled in. It does not
know who uses a module. A package brings them in its SPDK's prefix, built for its Python.

nvmuser's control plane needs none of them: where one cannot be built, set-up goes on, and `load` says why.
"""

from __future__ import annotations

import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from nvmuser.errors import SetupError
from nvmuser.paths import SETUP, cache_dir, packaged_dir
from nvmuser.toolchain import artifact, proc, recipe, spdk
from nvmuser.toolchain.steps import Reporter

_KEPT = 6
"""Builds of one module: other checkouts and Python versions may share the cache."""


@dataclass(frozen=True)
class Binding:
    """One module.

    :param name: what it is imported as.
    :param directory: its sources, in spdk-glue.
    :param header: of SPDK's include directory; without it this SPDK has nothing to bind.
    :param library: of SPDK's library directory; where it lies, the others do.
    :param link: arguments for the linker, in order.
    """

    name: str
    directory: str
    header: str
    library: str
    link: tuple[str, ...]


VFU = Binding("nvmuser_vfu", "vfu", "vfio-user/libvfio-user.h", "libvfio-user.so", ("-lvfio-user",))
NVME = Binding(
    "nvmuser_nvme",
    "nvme",
    "spdk/nvme.h",
    "libspdk_nvme.so",
    (
        # RPATH, which also serves the libraries that these need.
        "-Wl,--disable-new-dtags", "-lspdk_nvme", "-lspdk_env_dpdk", "-lspdk_util", "-lspdk_log", "-lrte_eal",
        # SPDK's libraries leave these to programs; DPDK's pools register themselves when they are loaded.
        "-Wl,--no-as-needed", "-lisal", "-lssl", "-lcrypto", "-lrte_pci", "-lrte_bus_pci", "-lrte_mempool_ring",
    ),
)  # fmt: skip
ALL = (VFU, NVME)


def load(binding: Binding) -> ModuleType:
    """The module, from the cache.

    :raises SetupError: it has not been built, or cannot be.
    """
    if loaded := sys.modules.get(binding.name):
        return loaded
    if reason := unavailable(binding):
        raise SetupError(f"{binding.name}: {reason}")
    path = _module(binding, spdk.find_spdk().prefix)
    if not is_built(binding):
        way_out = "use the package's" if packaged_dir() else f"run `{SETUP}`"
        raise SetupError(f"{binding.name} has not been built for this SPDK and this Python: {way_out}")
    spec = spec_from_file_location(binding.name, path)
    assert spec is not None
    assert spec.loader is not None
    try:
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise SetupError(f"{path}: {error}") from error
    sys.modules[binding.name] = module
    return module


def unavailable(binding: Binding) -> str | None:
    """Why the module cannot be had here whatever set-up does, or None.

    :raises SetupError: there is no SPDK at all.
    """
    if packaged_dir():
        return None if find_spec("_cffi_backend") else "the package python3-cffi-backend is missing"
    if find_spec("cffi") is None:
        return "the Python package cffi is missing (pip install 'nvmuser[bindings]')"
    prefix = spdk.find_spdk().prefix
    if not (prefix / "include" / binding.header).exists():
        return f"{prefix} has no {binding.header}: it is in the SPDK that `{SETUP}` builds"
    if library_dir(binding, prefix) is None:
        return f"{prefix} has no shared {binding.library}: it is in the SPDK that `{SETUP}` builds"
    return None


def is_built(binding: Binding) -> bool:
    """Whether `load` would find the module.

    :raises SetupError: there is no SPDK at all.
    """
    return unavailable(binding) is None and _module(binding, spdk.find_spdk().prefix).exists()


def is_done(binding: Binding) -> bool:
    """Whether set-up has nothing left to do for the module: it may also be that there is nothing that it could do."""
    return spdk.is_done() and (unavailable(binding) is not None or is_built(binding) or packaged_dir() is not None)


def build(binding: Binding, reporter: Reporter) -> None:
    """Generate the module's C, compile and link it."""
    if unavailable(binding) is not None:
        return
    prefix = spdk.find_spdk().prefix
    path = _module(binding, prefix)
    with artifact.assembling(path.parent) as staging:
        build_into(binding, prefix, staging, reporter)
        artifact.write_manifest(staging, spdk=str(prefix), python=sysconfig.get_config_var("SOABI"))
    artifact.forget_older(path.parent.parent, f"{binding.name}-*", _KEPT)


def build_into(binding: Binding, prefix: Path, directory: Path, reporter: Reporter, *, runpath: str = "") -> Path:
    """Build the module in a directory; returns its path.

    :param runpath: where it finds SPDK's libraries; empty: where they are now.
    :raises SetupError: the compiler failed.
    """
    reporter.update(f"{binding.name}: generating", 0.1)
    generated, out = directory / f"{binding.name}.c", directory / _file_name(binding)
    _generate(binding, generated)
    reporter.update(f"{binding.name}: compiling", 0.3)
    proc.run(_compile(binding, prefix, generated, out, runpath), log=reporter.log)
    generated.unlink()
    return out


def _file_name(binding: Binding) -> str:
    return f"{binding.name}{sysconfig.get_config_var('EXT_SUFFIX')}"


def _generate(binding: Binding, out: Path) -> None:
    import cffi

    ffi = cffi.FFI()
    ffi.cdef((_sources(binding) / "cdefs.h").read_text(encoding="utf-8"))
    # cffi hands these on to its recompiler, which would otherwise print.
    ffi.set_source(binding.name, '#include "glue.h"', compiler_verbose=0)
    ffi.emit_c_code(str(out))


def _compile(binding: Binding, prefix: Path, generated: Path, out: Path, runpath: str) -> list[str | Path]:
    directory = library_dir(binding, prefix)
    assert directory is not None
    sources = _sources(binding)
    headers = [sources, prefix / "include", Path(sysconfig.get_path("include"))]
    return [
        "gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-fPIC", "-shared", *(f"-I{path}" for path in headers),
        generated, *sorted(sources.glob("*.c")), "-o", out, f"-L{directory}",
        f"-Wl,-rpath,{runpath or directory}", *binding.link,
    ]  # fmt: skip


def _sources(binding: Binding) -> Path:
    return recipe.glue_dir() / binding.directory


def library_dir(binding: Binding, prefix: Path) -> Path | None:
    """Where an SPDK has its shared libraries, or None: it has none."""
    for pattern in ("lib", "lib64", "lib/*-linux-gnu"):
        for directory in prefix.glob(pattern):
            if (directory / binding.library).exists():
                return directory
    return None


def _module(binding: Binding, prefix: Path) -> Path:
    """Where the module lies once it is built: the name covers its sources, the SPDK and the Python."""
    if packaged_dir():
        return prefix / "bindings" / _file_name(binding)
    directory = library_dir(binding, prefix)
    assert directory is not None
    built = (directory / binding.library).stat().st_mtime_ns
    sources = sorted(path for path in _sources(binding).iterdir() if path.suffix in (".c", ".h"))
    parts = [part for path in sources for part in (path.name, path.read_bytes())]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    digest = artifact.digest(repr(binding), str(prefix), str(built), suffix, *parts)
    return cache_dir() / f"bindings/{binding.name}-{digest}" / _file_name(binding)
