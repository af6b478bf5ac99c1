"""The x86-64 microarchitecture level of this machine, for which SPDK is built.

A build for the very CPU would die with SIGILL on another one that shares the cache; a level is a name for a set of
instructions (System V ABI, x86-64 psABI supplement).
"""

from __future__ import annotations

from pathlib import Path

from nvmuser.errors import SetupError

# The supplement's table in the names of /proc/cpuinfo (lahf_lm is LAHF-SAHF, pni SSE3, abm LZCNT, xsave OSXSAVE).
_V2 = frozenset(("cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"))
_V3 = _V2 | frozenset(("abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"))


def level(cpuinfo: str | None = None) -> str:
    """`x86-64-v3` or `x86-64-v2`.

    :raises SetupError: less than that: DPDK does not run there.
    """
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if cpuinfo is None else cpuinfo
    flags = next((line.partition(":")[2].split() for line in text.splitlines() if line.startswith("flags")), [])
    for name, needed in (("x86-64-v3", _V3), ("x86-64-v2", _V2)):
        if needed <= set(flags):
            return name
    raise SetupError("this CPU is below x86-64-v2 (SSE4.2), which SPDK and DPDK need")


def runs(built_for: str, cpuinfo: str | None = None) -> bool:
    """Whether this machine runs what was built for a level.

    :raises SetupError: this CPU is below all of them.
    """
    return built_for <= level(cpuinfo)


def model(cpuinfo: str | None = None) -> str:
    """The CPU's name, for keys and reports."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if cpuinfo is None else cpuinfo
    names = (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    return next(names, "unknown")
