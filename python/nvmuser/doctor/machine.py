"""Checks of the machine: memory, limits of the kernel, CPUs."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from nvmuser.doctor.check import Finding
from nvmuser.errors import NvmuserError
from nvmuser.hostfs import cgroups, limits
from nvmuser.hostfs.hugepages import MOUNT_COMMAND, query_pool
from nvmuser.hostfs.sockets import answers
from nvmuser.paths import StateDir
from nvmuser.supervisor import control

_WANTED_HUGEPAGES = 1024
_HUGEPAGES_GAIN = "fewer TLB misses in the target, and vhost-user-blk as a peer of `bench compare`"
_CONTROLLERS_WANTED = 200
_MEMLOCK_WANTED = 64 * 1024 * 1024
_MEMORY_WANTED = 1 << 30
"""For a target and a small guest."""
_TASKS_WANTED = 128


def hugepages(_state: StateDir) -> Iterator[Finding]:
    """Huge pages of 2 MiB are reserved."""
    name = "hugepages"
    pool = query_pool()
    if pool is None:
        yield Finding(name, False, "this kernel has none of 2 MiB; the target runs without", gain=_HUGEPAGES_GAIN)
        return
    text = f"{pool.free} of {pool.total} free (2 MiB)"
    if pool.total:
        yield Finding(name, True, text)
    else:
        fix = f"sysctl vm.nr_hugepages={_WANTED_HUGEPAGES}"
        yield Finding(name, False, f"{text}; the target runs without", fix, gain=_HUGEPAGES_GAIN)


def hugetlbfs(_state: StateDir, mounts: Path = Path("/proc/mounts")) -> Iterator[Finding]:
    """Reserved huge pages can be used."""
    lines = mounts.read_text(encoding="utf-8").splitlines()
    points = [line.split()[1] for line in lines if line.split()[2] == "hugetlbfs"]
    if points:
        yield Finding("hugetlbfs", True, f"mounted on {', '.join(points)}")
    else:
        yield Finding("hugetlbfs", False, "not mounted", MOUNT_COMMAND, gain="use of huge pages")


def memory_lock(_state: StateDir) -> Iterator[Finding]:
    """The target may lock its memory."""
    name = "memory lock limit"
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or os.geteuid() == 0:
        yield Finding(name, True, "unlimited")
    elif soft >= _MEMLOCK_WANTED:
        yield Finding(name, True, f"{soft // 1024} KiB")
    else:
        fix = "add `* - memlock unlimited` to /etc/security/limits.conf and log in again"
        yield Finding(name, False, f"{soft // 1024} KiB", fix, gain="io_uring and locked memory for large queues")


def cores(_state: StateDir) -> Iterator[Finding]:
    """Target and guest have CPUs of their own."""
    count = len(os.sched_getaffinity(0))
    if count >= 2:
        yield Finding("cores", True, f"{count}")
    else:
        fix = "give the machine a second core, or use `target start --profile eco`"
        yield Finding("cores", False, "1: target and guest share it", fix, gain="a target that polls beside its guests")


def asynchronous_io(state: StateDir) -> Iterator[Finding]:
    """Targets find events for asynchronous I/O: each core takes some as soon as it has a file volume."""
    name = "asynchronous I/O"
    events = limits.aio_events()
    files, cores_used = _file_volumes(state)
    ours = limits.AIO_WANTED * cores_used
    text = f"{events.left} of {events.limit} events are free"
    if answers(state.rpc_socket):
        # Those of its volumes are among what is in use.
        ours = 0
        text += f"; file volumes of this deployment: {files}, and the target has theirs"
    elif files:
        text += f"; file volumes of this deployment: {files}, and a target on {cores_used} of the cores takes {ours}"
    text += f" (each core of a target up to {limits.AIO_WANTED}, {limits.AIO_LEAST} at least)"
    if events.left >= max(ours, limits.AIO_WANTED):
        yield Finding(name, True, text)
    else:
        needed = events.exhausted or events.left < limits.AIO_LEAST * cores_used * bool(ours)
        yield Finding(name, False, f"{events}; {text}", f"{events.fix}; in /etc/sysctl.d to keep it", needed=needed)


def control_groups(_state: StateDir) -> Iterator[Finding]:
    """What is started here may have memory and threads."""
    available = limits.available_memory()
    text = f"{available >> 20} MiB available"
    left = cgroups.memory_left()
    text += "" if left is None else f"; the control group has {left >> 20} MiB left"
    fix = "raise MemoryMax= of the unit, or memory.max (memory.limit_in_bytes) of the group, or end other programs"
    yield Finding("memory", available >= _MEMORY_WANTED, text, fix)
    tasks = cgroups.tasks_left()
    text = "as many as the machine has" if tasks is None else f"the control group has {tasks} left"
    fix = "raise TasksMax= of the unit, or pids.max of the group"
    yield Finding("threads", tasks is None or tasks >= _TASKS_WANTED, text, fix)


def _file_volumes(state: StateDir) -> tuple[int, int]:
    """How many this deployment has, and on how many cores a target has them open."""
    try:
        desired = control.load(state)
    except NvmuserError:
        return 0, 0
    files = sum(volume.backend == "file" for volume in desired.volumes())
    settings = desired.target()
    return files, (len(settings.cores) or (2 if settings.profile == "balanced" else 1)) if files else 0


def descriptors(_state: StateDir) -> Iterator[Finding]:
    """The target may open as many files as many controllers need."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    rooms = (hard - limits.RESERVE) // (limits.PER_CONTROLLER + limits.PER_FILE)
    text = f"{hard}, enough for about {rooms} controllers with a file volume each"
    fix = "add `* hard nofile 1048576` to /etc/security/limits.conf and log in again"
    yield Finding("file descriptors", rooms >= _CONTROLLERS_WANTED, text, fix, gain="more controllers")
