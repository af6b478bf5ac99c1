"""A real libvirtd of its own: its directories are in a mount namespace, its processes end with it."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path

from nvmuser.guest.libvirt import QEMU
from nvmuser.toolchain import find_appliance, find_qemu

QEMU_CONF = """
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""
START = """
set -e
[ -z "$2" ] || mount --bind "$2" "$3"
for directory in /etc/libvirt /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
    mkdir -p $directory && mount -t tmpfs tmpfs $directory
done
# libvirt's build names a user and a group that only its whole package makes.
for file in passwd group; do cp /etc/$file "$1/"; done
grep -q ^libvirt-qemu: "$1/passwd" || echo libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin >>"$1/passwd"
for group in kvm:x:64056: libvirt-qemu:x:64055:; do
    grep -q "^${group%%:*}:" "$1/group" || echo $group >>"$1/group"
done
for file in passwd group; do mount --bind "$1/$file" /etc/$file; done
mkdir -p /etc/libvirt/hooks/qemu.d /var/log/libvirt/qemu
cp "$1/hook" /etc/libvirt/hooks/qemu.d/nvmuser
cp "$1/qemu.conf" "$1/libvirtd.conf" /etc/libvirt/
# Not exec: process 1 has to reap QEMUs whose parents have gone, which libvirtd does not.
libvirtd --config /etc/libvirt/libvirtd.conf --pid-file "$1/pid"
exit $?
"""


class Libvirtd:
    """A running one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.emulator = directory / "qemu"
        self.uri = f"qemu:///system?socket={directory / 'libvirt-sock'}"

    def virsh(self, *words: str) -> tuple[int, str]:
        """virsh's exit status, and what it says."""
        done = subprocess.run(
            ["virsh", "--connect", self.uri, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout.strip()

    def ok(self, *words: str) -> str:
        """virsh, which must succeed."""
        status, text = self.virsh(*words)
        assert status == 0, text
        return text


@contextlib.contextmanager
def libvirtd(
    directory: Path, *, emulator: Sequence[str] = (), own: tuple[Path, Path] | None = None
) -> Iterator[Libvirtd]:
    """libvirtd with our hook, as a package installs it.

    :param emulator: its QEMU; the one that we use.
    :param own: a directory that only this host sees, and where.
    """
    nvmuser = shlex.quote(str(Path(sys.executable).with_name("nvmuser")))
    files = {
        "hook": f'#!/bin/sh\nexec {nvmuser} guest libvirt-hook --wait 0.5 "$@"\n',
        "qemu": f'#!/bin/sh\nexec {shlex.join(emulator or find_qemu().argv)} "$@"\n',
        "qemu.conf": QEMU_CONF,
        "libvirtd.conf": f'unix_sock_dir = "{directory}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
        f'host_uuid = "{uuid.uuid4()}"\n',
    }
    for name, text in files.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", START, "sh", directory]
    with (directory / "libvirtd.log").open("wb") as log:
        process = subprocess.Popen(
            [*argv, *(own or ("", ""))], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env=os.environ,
        )  # fmt: skip
    found = Libvirtd(directory)
    try:
        deadline = time.monotonic() + 60
        while found.virsh("list")[0] != 0:
            assert process.poll() is None, (directory / "libvirtd.log").read_text()
            assert time.monotonic() < deadline, (directory / "libvirtd.log").read_text()
            time.sleep(0.1)
        yield found
    finally:
        process.kill()
        process.wait()


def bootable(domain: str, *, arguments: Sequence[str] = (), agent: Path | None = None) -> str:
    """A domain that we print, with the appliance as its kernel.

    :param arguments: more of them for QEMU, as `qemu:arg`.
    :param agent: the socket of its second serial port.
    """
    root, appliance = ET.fromstring(domain), find_appliance()
    system, line, devices = root.find("os"), root.find(f"{{{QEMU}}}commandline"), root.find("devices")
    assert system is not None
    assert line is not None
    assert devices is not None
    ET.SubElement(system, "kernel").text = str(appliance.kernel)
    ET.SubElement(system, "initrd").text = str(appliance.initrd)
    ET.SubElement(system, "cmdline").text = "console=ttyS0 quiet panic=-1"
    for argument in arguments:
        ET.SubElement(line, f"{{{QEMU}}}arg", value=argument)
    if agent:
        ET.SubElement(ET.SubElement(devices, "serial", type="pty"), "target", port="0")
        serial = ET.SubElement(devices, "serial", type="unix")
        ET.SubElement(serial, "source", mode="bind", path=str(agent))
        ET.SubElement(serial, "target", port="1")
    return ET.tostring(root, encoding="unicode")
