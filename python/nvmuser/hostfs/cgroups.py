"""What the control groups that this process is in still allow: memory, hugepages, tasks; of both versions of cgroups.

Owns their files and where they are. What follows from a limit is its callers'. Sources: Linux's
Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/{memory,hugetlb,pids}.rst; cgroups(7) for /proc/self/cgroup.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc/self")
_NO_LIMIT = 1 << 60
"""Version 1 has the largest multiple of a page in place of no limit."""


@dataclass(frozen=True)
class _Files:
    """Names of a resource's files in version 2 and in version 1: the limit, and what is used."""

    controller: str
    v2: tuple[str, str]
    v1: tuple[str, str]
    given_back: tuple[str, str] = ("", "")
    """In the file memory.stat: what counts as used, and is given up when it is wanted."""


_MEMORY = _Files(
    "memory",
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ("inactive_file", "total_inactive_file"),
)
_HUGEPAGES = tuple(
    _Files(
        "hugetlb",
        (f"hugetlb.2MB.{kind}max", f"hugetlb.2MB.{kind}current"),
        (f"hugetlb.2MB.{kind}limit_in_bytes", f"hugetlb.2MB.{kind}usage_in_bytes"),
    )
    for kind in ("", "rsvd.")
)
_TASKS = _Files("pids", ("pids.max", "pids.current"), ("pids.max", "pids.current"))


def memory_left(proc: Path = _PROC) -> int | None:
    """Bytes of memory; None: without a limit."""
    return _left(_MEMORY, proc)


def hugepages_left(proc: Path = _PROC) -> int | None:
    """Bytes in hugepages of 2 MiB; None: without a limit."""
    return min((left for files in _HUGEPAGES if (left := _left(files, proc)) is not None), default=None)


def tasks_left(proc: Path = _PROC) -> int | None:
    """Threads and processes; None: without a limit."""
    return _left(_TASKS, proc)


def _left(files: _Files, proc: Path) -> int | None:
    found = [
        left
        for group, version in _groups(files.controller, proc)
        if (left := _left_in(group, files, version)) is not None
    ]
    return min(found, default=None)


def _left_in(group: Path, files: _Files, version: int) -> int | None:
    """What is left of one group's limit; None where it has none."""
    limit, used = files.v2 if version == 2 else files.v1
    given_back = files.given_back[version == 1]
    try:
        most = (group / limit).read_text(encoding="ascii").strip()
        now = int((group / used).read_text(encoding="ascii"))
        stat = (group / "memory.stat").read_text(encoding="ascii") if given_back else ""
    except OSError:
        return None
    facts = dict(line.split() for line in stat.splitlines() if line)
    return None if most == "max" or int(most) >= _NO_LIMIT else max(0, int(most) - now + int(facts.get(given_back, 0)))


def _groups(controller: str, proc: Path) -> Iterator[tuple[Path, int]]:
    """Directories of the groups of this process that may limit a resource, those around them too; with the version."""
    try:
        lines = (proc / "cgroup").read_text(encoding="utf-8").splitlines()
        mounts = [line.split() for line in (proc / "mountinfo").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return
    for line in lines:
        _number, controllers, path = line.split(":", 2)
        version = 1 if controllers else 2
        if version == 1 and controller not in controllers.split(","):
            continue
        for root, mount in _hierarchies(mounts, controller if version == 1 else ""):
            # Where the mount shows only a part, as in a container, the group may be at its top.
            inside = Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path()
            group = mount / inside
            yield from ((place, version) for place in (group, *group.parents) if place.is_relative_to(mount))


def _hierarchies(mounts: list[list[str]], controller: str) -> Iterator[tuple[str, Path]]:
    """Which part of a hierarchy is mounted where (proc_pid_mountinfo(5)); without a controller, of version 2."""
    for fields in mounts:
        kind, _source, options = fields[fields.index("-") + 1 :][:3]
        if kind == ("cgroup" if controller else "cgroup2") and (not controller or controller in options.split(",")):
            yield fields[3], Path(fields[4])
