"""What the service of the packages, and other users beside it, may not do: tried in a fresh Debian."""

from __future__ import annotations

import json
import re

import pytest
from container import Container
from test_debian import install

pytestmark = pytest.mark.matrix

UNIT = "/lib/systemd/system/nvmuser.service"
# Each is a word and an expression; what raises was denied. Run as the service, in its unit.
TRIALS = {
    "write-etc": "open('/etc/written', 'w')",
    "write-usr": "open('/usr/bin/written', 'w')",
    "write-other-state": "open('/var/lib/dpkg/written', 'w')",
    "look-into-home": "os.listdir('/root') + os.listdir('/home') or fail()",
    "see-a-disk": "[name for name in os.listdir('/dev') if name.startswith(('vd', 'sd', 'nvme', 'loop'))] or fail()",
    "become-root": "os.setuid(0)",
    "give-files-away": "os.chown(os.path.join(STATE, 'probe'), 0, -1)",
    "mount": "call('mount', None, b'/mnt', b'tmpfs', 0, None)",
    "namespaces": "call('unshare', 0x10000000)",
    "modules": "call('init_module', b'', 0, b'')",
    "settings-of-the-kernel": "open('/proc/sys/vm/nr_hugepages', 'w').write('0')",
    "write-and-execute": "mmap.mmap(-1, 4096, prot=7)",
    "packets": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "clock": "time.clock_settime(time.CLOCK_REALTIME, time.time())",
    "real-time": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
}
NEEDED = {
    "state": "open(os.path.join(STATE, 'probe'), 'w')",
    "group-of-sockets": "os.mkdir(os.path.join(STATE, 'shared')) or os.chmod(os.path.join(STATE, 'shared'), 0o2750)",
    "open-to-qemu": "os.chown(os.path.join(STATE, 'shared'), -1, grp.getgrnam('kvm').gr_gid)",
    "remotes": "socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
    "guests": "socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)",
    "sockets-of-the-machine": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4)",
    "processes": "os.pidfd_open(os.getpid())",
    "memory": "open('/proc/meminfo').read()",
    "limits": "open('/proc/sys/fs/aio-nr').read()",
}
PROBE = f"""
import ctypes, grp, json, mmap, os, socket, time
STATE = "/var/lib/nvmuser"
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
def fail():
    raise OSError("nothing to be seen")
found = {{}}
for name, text in json.loads({json.dumps(json.dumps(NEEDED | TRIALS))}).items():
    try:
        eval(text)
        found[name] = True
    except (OSError, ValueError):
        found[name] = False
open(STATE + "/probe", "w").write(json.dumps(found))
"""


def test_what_the_service_and_other_users_may_not_do(container: Container) -> None:
    container.apt("update")
    install(container, "/debs")
    the_service(container)
    other_users(container)


def the_service(container: Container) -> None:
    """A program in the service's place, with all that its unit says."""
    (container.root / "opt/probe.py").write_text(PROBE)
    unit = container.run("cat", UNIT)
    for pattern, text in (
        (r"Type=.*", "Type=oneshot"), (r"ExecStart=.*", "ExecStart=/usr/bin/python3 /opt/probe.py"),
        (r"ExecStop=.*\n", ""), (r"Restart=.*\n", ""), (r"FileDescriptorStoreMax=.*\n", ""), (r"NotifyAccess=.*\n", ""),
    ):  # fmt: skip
        unit, count = re.subn(pattern, text, unit)
        assert count == 1, pattern
    container.run("sh", "-c", f"cat >/run/systemd/system/probe.service <<'EOF'\n{unit}EOF")
    container.run("systemctl", "daemon-reload")
    container.run("systemctl", "start", "probe")
    found = json.loads(container.run("cat", "/var/lib/nvmuser/probe"))
    assert found == dict.fromkeys(NEEDED, True) | dict.fromkeys(TRIALS, False)


def other_users(container: Container) -> None:
    container.run("systemctl", "start", "nvmuser")
    for name in ("mine", "shared"):
        container.run("nvmuser", "volume", "create", name, "--size", "16M")
    container.run("nvmuser", "controller", "create", "mine", "--attach", "mine")
    container.run("nvmuser", "controller", "create", "shared", "--attach", "shared", "--group", "kvm")
    for command in (
        "cat /var/lib/nvmuser/store.sqlite", "ls /var/lib/nvmuser", "ls /var/lib/nvmuser/run",
        "cat /var/lib/nvmuser/volumes/mine", "cat /var/lib/nvmuser/log/target.log",
        "nvmuser --state-dir /var/lib/nvmuser status", connect("run/control.sock"), connect("run/spdk.sock"),
        connect("run/endpoint.sock"), connect("run/guest/mine/cntrl"),
    ):  # fmt: skip
        for user in ("nobody", "in-kvm"):
            container.run("sh", "-c", f"id {user} >/dev/null 2>&1 || useradd -G kvm {user}")
            refused = container.run("runuser", "-u", user, "--", "sh", "-c", f"{command} || echo denied")
            assert refused.endswith("denied\n"), f"{user}: {command}"
    allowed = connect("run/guest/shared/cntrl")
    container.run("runuser", "-u", "in-kvm", "--", "sh", "-c", allowed)
    assert container.run("runuser", "-u", "nobody", "--", "sh", "-c", f"{allowed} || echo denied").endswith("denied\n")


def connect(socket: str) -> str:
    return f"python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"/var/lib/nvmuser/{socket}\")'"
