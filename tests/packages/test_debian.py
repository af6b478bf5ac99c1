"""The Debian packages in a fresh Debian: installed, used, upgraded below a guest that writes, removed and purged.

The guest's QEMU, kernel and programs are those of the cache; SPDK, libvfio and Python's modules are the packages'.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from container import Container
from workshop import Here, Workshop

pytestmark = pytest.mark.matrix

STATE = "/var/lib/nvmuser"
# Verifying writes, one after the other, until somebody wants to know.
WRITE = """
job="--name=w --filename=/dev/nvme0n1 --rw=randwrite --bs=4k --iodepth=8 --ioengine=io_uring --direct=1 --size=16m
    --rate=,8m --verify=crc32c --verify_fatal=1"
(while [ ! -e /tmp/stop ]; do fio $job >/tmp/out 2>&1 || break; done; echo $? >/tmp/end) &
cat /proc/sys/kernel/random/boot_id
"""
RESULT = """
touch /tmp/stop; while [ ! -e /tmp/end ]; do usleep 100000; done; cat /proc/sys/kernel/random/boot_id
[ "$(cat /tmp/end)" = 0 ] || cat /tmp/out
"""


def test_lintian_finds_no_error(workshop: Here | Workshop, debs: Path) -> None:
    assert workshop.examine(list(debs.glob("*.deb"))) == ""


def test_a_life_of_the_packages(container: Container) -> None:
    before = files(container)
    container.apt("update")
    install(container, "/debs")
    assert container.run("systemctl", "is-enabled", "nvmuser", check=False).strip() == "disabled"
    use(container)
    boot_id = in_guest(container, WRITE)
    upgrade(container)
    assert in_guest(container, RESULT) == boot_id
    container.run("nvmuser", "guest", "stop", "box")
    remove(container)
    come_back(container)
    container.apt("purge", "--autoremove", "nvmuser", "nvmuser-spdk", "nvmuser-libvfio")
    assert files(container) - before == set()
    assert "nvmuser" not in container.run("dpkg-query", "--show")


def install(container: Container, directory: str) -> None:
    names = (f"{directory}/{name}" for name in ("nvmuser_", "nvmuser-spdk_", "nvmuser-libvfio_"))
    container.apt("install", *(container.run("sh", "-c", f"echo {name}*.deb").strip() for name in names))


def files(container: Container) -> set[str]:
    """What there is, but for logs, caches, what the system's own tools keep, and what installed packages brought: apt
    does not remove what we depend on while others suggest it."""
    kept = r"/(var/(log|cache|lib/(apt|dpkg|systemd))|etc/(passwd|group|shadow|gshadow|subuid|subgid|ssl|ld\.so))"
    found = container.run("sh", "-c", f"find /etc /usr /var /opt /srv -xdev | grep -vE '^{kept}|__pycache__'")
    return set(found.splitlines()) - set(container.run("sh", "-c", "cat /var/lib/dpkg/info/*.list").splitlines())


def status(container: Container) -> dict[str, object]:
    found: dict[str, object] = json.loads(container.run("nvmuser", "status", "--json"))
    return found


def use(container: Container) -> None:
    """Five commands, and a guest does I/O."""
    container.run("systemctl", "enable", "--now", "nvmuser")
    container.run("nvmuser", "volume", "create", "disk", "--size", "64M")
    container.run("nvmuser", "controller", "create", "c0", "--attach", "disk")
    container.run("nvmuser", "guest", "start", "box", "--controller", "c0", "--memory", "512M")
    assert "nvme0n1" in container.run("nvmuser", "guest", "exec", "box", "lsblk")
    # Nothing that the unit denies was missed: not even the locks of the files, which are a descriptor of the target's.
    found = status(container)
    assert found["errors"] == [], container.log
    users = container.run("ps", "-o", "user=", "-C", "nvmf_tgt").split() if has(container, "ps") else ["nvmuser"]
    assert users == ["nvmuser"]
    assert json.loads(container.run("nvmuser", "doctor", "--json"))["ok"]


def has(container: Container, program: str) -> bool:
    return bool(container.run("sh", "-c", f"command -v {program} || true").strip())


def in_guest(container: Container, script: str) -> str:
    return container.run("nvmuser", "guest", "exec", "box", "--", "sh", "-c", script)


def pids(container: Container) -> dict[str, object]:
    found = status(container)
    return {name: found[name]["pid"] for name in ("target", "endpoint")} | {  # type: ignore[index]
        "supervisor": container.run("systemctl", "show", "--property=MainPID", "--value", "nvmuser").strip()
    }


def upgrade(container: Container) -> None:
    """The supervisor alone is replaced by the new version's; the target when somebody asks."""
    old = pids(container)
    install(container, "/debs/next")
    container.run("sh", "-c", "until nvmuser status --json | grep -q '\"ready\": true'; do sleep 0.1; done")
    new = pids(container)
    assert {name: new[name] == old[name] for name in old} == {"target": True, "endpoint": True, "supervisor": False}
    container.run("nvmuser", "target", "upgrade")
    last = pids(container)
    assert (last["endpoint"], last["target"] == new["target"]) == (new["endpoint"], False)


def remove(container: Container) -> None:
    """What a person made stays, and what says what it is; no process and nothing else does."""
    container.apt("remove", "nvmuser", "nvmuser-spdk", "nvmuser-libvfio")
    assert container.run("sh", "-c", "cat /proc/[0-9]*/comm | grep nvmf_tgt || true") == ""
    container.apt("purge", "nvmuser", "nvmuser-spdk", "nvmuser-libvfio")
    left = {path for path in container.run("find", STATE).split() if not path.endswith("-journal")}
    assert left == {STATE, f"{STATE}/store.sqlite", f"{STATE}/volumes", f"{STATE}/volumes/disk"}


def come_back(container: Container) -> None:
    """Installed again, everything is as it was; then the person takes it away."""
    install(container, "/debs/next")
    container.run("systemctl", "start", "nvmuser")
    assert json.loads(container.run("nvmuser", "volume", "list", "--json"))[0]["name"] == "disk"
    container.run("nvmuser", "controller", "delete", "c0")
    container.run("nvmuser", "volume", "delete", "disk", "--yes")
