"""What a machine must have for nvmuser's main job, checked one by one.

Owns the checks and what mends what they find. It changes nothing.
"""

from __future__ import annotations

import os
import resource
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nvmuser.errors import SetupError
from nvmuser.paths import SUN_PATH_MAX, StateDir
from nvmuser.toolchain import accel, appliance, bindings, libvfio, qemu, spdk

LONGEST_NAME = 32
"""Of a controller: its socket's path must still fit into sockaddr_un."""

_HUGEPAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
_WANTED_HUGEPAGES = 1024
_MEMLOCK_WANTED = 64 * 1024 * 1024


@dataclass(frozen=True)
class Check:
    """One finding. `needed`: without it guests cannot be served; the rest costs speed or a feature."""

    name: str
    ok: bool
    finding: str
    mend: str = ""
    needed: bool = True

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(state: StateDir) -> list[Check]:
    """All checks, in the order in which a person would mend what they find."""
    found = [
        _part("SPDK", _spdk),
        _part("QEMU", _qemu),
        _part("guest", _guest),
        _part("accelerator", _accelerator),
        _bindings(),
        replace(_part("libvfio", lambda: str(libvfio.find_libvfio())), needed=False),
        _hugepages(),
        hugetlbfs(Path("/proc/mounts").read_text(encoding="utf-8")),
        _memory_lock(),
        _cores(),
        _path_length(state),
        _permissions(state),
        _stale_sockets(state),
    ]
    return [check for check in found if check is not None]


def usable(checks: list[Check]) -> bool:
    """Whether the main job can run."""
    return all(check.ok or not check.needed for check in checks)


def _part(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except SetupError as error:
        return Check(name, False, str(error).splitlines()[0], "make setup")


def _spdk() -> str:
    found = spdk.find_spdk()
    return f"{found.version} in {found.prefix}"


def _qemu() -> str:
    found = qemu.find_qemu()
    return f"{found.version} with {qemu.DEVICE} ({found.origin})"


def _guest() -> str:
    found = appliance.find_appliance()
    return f"kernel {found.kernel_version}, {found.fio_version}"


def _accelerator() -> str:
    answer = accel.accelerator()
    if answer == "kvm":
        return "kvm"
    if not Path("/dev/kvm").exists():
        return "tcg (software emulation: this machine has no /dev/kvm)"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg (software emulation: no access to /dev/kvm; be in group kvm to use it)"
    return "tcg (software emulation: no kernel came up under KVM)"


def _bindings() -> Check:
    name = "Python modules"
    try:
        missing = [binding.name for binding in bindings.ALL if not bindings.is_built(binding)]
        reasons = [reason for binding in bindings.ALL if (reason := bindings.unavailable(binding))]
    except SetupError as error:
        return Check(name, False, str(error).splitlines()[0], "make setup", needed=False)
    if not missing:
        return Check(name, True, ", ".join(binding.name for binding in bindings.ALL), needed=False)
    finding = f"no {', '.join(missing)}: no devices and no NVMe host in Python"
    return Check(name, False, finding, reasons[0] if reasons else "make setup", needed=False)


def _hugepages() -> Check:
    name = "hugepages"
    try:
        total = int((_HUGEPAGES / "nr_hugepages").read_text())
        free = int((_HUGEPAGES / "free_hugepages").read_text())
    except OSError:
        return Check(name, False, "this kernel has no 2 MiB hugepages: volumes work, a little slower", "", needed=False)
    finding = f"{free} of {total} free (2 MiB)"
    if total:
        return Check(name, True, finding, needed=False)
    mend = f"sysctl vm.nr_hugepages={_WANTED_HUGEPAGES}"
    return Check(name, False, f"{finding}: the target runs without them, a little slower", mend, needed=False)


def hugetlbfs(mounts: str) -> Check:
    points = [line.split()[1] for line in mounts.splitlines() if line.split()[2] == "hugetlbfs"]
    if points:
        return Check("hugetlbfs", True, f"mounted on {', '.join(points)}", needed=False)
    mend = "mkdir -p /dev/hugepages && mount -t hugetlbfs hugetlbfs /dev/hugepages"
    return Check("hugetlbfs", False, "not mounted: hugepages cannot be used", mend, needed=False)


def _memory_lock() -> Check:
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or os.geteuid() == 0:
        return Check("memory lock limit", True, "unlimited", needed=False)
    enough = soft >= _MEMLOCK_WANTED
    mend = "" if enough else "add `* - memlock unlimited` to /etc/security/limits.conf and log in again"
    return Check("memory lock limit", enough, f"{soft // 1024} KiB", mend, needed=False)


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0))
    if cores >= 2:
        return Check("cores", True, f"{cores}")
    return Check("cores", False, "1: target and guest share it", "give the machine a second core", needed=False)


def _path_length(state: StateDir) -> Check:
    longest = max(len(os.fsencode(state.socket("x" * LONGEST_NAME, direct=direct))) for direct in (False, True))
    if longest <= SUN_PATH_MAX:
        return Check("socket paths", True, f"{longest} bytes at most, of {SUN_PATH_MAX}")
    mend = "choose a shorter directory: --state-dir or NVMUSER_STATE"
    return Check("socket paths", False, f"up to {longest} bytes in {state.root}; UNIX allows {SUN_PATH_MAX}", mend)


def _permissions(state: StateDir) -> Check:
    name = "permissions"
    existing = state.root
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK | os.X_OK):
        return Check(
            name, False, f"cannot write to {existing}", "choose another directory: --state-dir or NVMUSER_STATE"
        )
    if existing == state.root:
        info = existing.stat()
        if info.st_uid != os.geteuid():
            return Check(
                name, False, f"{existing} belongs to user {info.st_uid}", f"chown -R {os.geteuid()} {existing}"
            )
        if info.st_mode & stat.S_IWOTH:
            return Check(name, False, f"{existing} can be written by everybody", f"chmod o-w {existing}")
    return Check(name, True, f"{state.root} is ours" if existing == state.root else f"{state.root} can be made")


def _stale_sockets(state: StateDir) -> Check:
    stale = [path for path in _sockets(state.run) if not _answers(path)]
    if not stale:
        return Check("stale sockets", True, "none", needed=False)
    names = " ".join(str(path) for path in stale)
    return Check("stale sockets", False, f"nobody answers on {len(stale)}", f"rm {names}", needed=False)


def _sockets(directory: Path) -> Iterator[Path]:
    if os.access(directory, os.R_OK | os.X_OK):
        for path in sorted(directory.rglob("*")):
            if path.is_socket():
                yield path


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            # Too long a path, no permission: not known to be dead, so not called stale.
            return True
    return True
