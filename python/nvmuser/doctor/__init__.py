"""`nvmuser doctor`: what a machine and a deployment need, checked one by one. Nothing here changes anything.

Owns the list of checks. A check is a function in a module of this package, listed in `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Iterator

from nvmuser.doctor import ceph, machine, parts, space, state_dir, writers
from nvmuser.doctor.check import Check, Finding
from nvmuser.errors import NvmuserError
from nvmuser.paths import StateDir

CHECKS: tuple[Check, ...] = (
    parts.spdk,
    parts.qemu,
    parts.guest,
    parts.accelerator,
    parts.bindings,
    parts.libvfio,
    ceph.module,
    machine.hugepages,
    machine.hugetlbfs,
    machine.memory_lock,
    machine.cores,
    machine.asynchronous_io,
    machine.descriptors,
    machine.control_groups,
    state_dir.path_length,
    state_dir.permissions,
    state_dir.stale_sockets,
    state_dir.log_sizes,
    space.space,
    ceph.clusters,
    writers.one_writer,
)
"""In the order in which a person would act on what they find."""


def examine(state: StateDir) -> list[Finding]:
    """Run all checks."""
    return [finding for check in CHECKS for finding in _guarded(check, state)]


def _guarded(check: Check, state: StateDir) -> Iterator[Finding]:
    try:
        yield from check(state)
    except (NvmuserError, OSError) as error:
        yield Finding(check.__name__.replace("_", " "), False, f"could not be looked at: {error}")


def usable(findings: list[Finding]) -> bool:
    """Whether guests can be served."""
    return not any(finding.level == "failed" for finding in findings)
