"""A Debian with systemd as process 1, in namespaces of its own: what packages are installed, used and removed in.

Owns its root directory's mounts and its processes, which all end with it. It shares the network with the host, and the
cache of `nvmuser setup`, without its SPDK (`HIDDEN`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INCLUDE = ("systemd", "systemd-sysv", "dbus", "libpam-systemd", "python3")
MIRRORS = ("Acquire::Check-", "Acquire::http", "Acquire::Retries")
"""What this machine's apt knows of the way to its mirrors."""
START = """
set -e
root=$1 cache=$2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null zero full random urandom tty; do
    touch "$root/dev/$node" && mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir -p "$root/root/.cache/nvmuser"
mount --bind "$cache" "$root/root/.cache/nvmuser"
cd "$root"
# Not chroot: in one there are no user namespaces.
pivot_root . .
umount -l .
exec /usr/bin/env -i container=test "$3" /lib/systemd/systemd --system --unit=multi-user.target \
    --log-target=console
"""


class Container:
    """A running one."""

    def __init__(self, root: Path, pid: int, log: Path) -> None:
        self.root = root
        self._pid = pid
        self._log = log

    def argv(self, *words: str) -> list[str]:
        """How to run a command in it."""
        enter = ["nsenter", f"--target={self._pid}", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--root", "--wd"]
        return [*enter, "/usr/bin/env", "-i", PATH, "HOME=/root", "LANG=C.UTF-8", *words]

    def run(self, *words: str, check: bool = True) -> str:
        """Run a command; what it has written, to both."""
        done = subprocess.run(
            self.argv(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout}{self.log}"
        return done.stdout

    @property
    def log(self) -> str:
        """The end of what systemd has written."""
        return self._log.read_text(errors="replace")[-4000:]

    def apt(self, *words: str) -> str:
        """apt-get without questions."""
        quiet = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "--no-install-recommends")
        return self.run(*quiet, *words)


def bootstrap(suite: str, root: Path, *packages: str) -> None:
    """A Debian of this suite with these packages, which reaches mirrors and other machines as this machine does."""
    command = [
        "mmdebstrap",
        "--variant=minbase",
        "--quiet",
        f"--include={','.join((*INCLUDE, *packages))}",
        suite,
        root,
    ]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    known = subprocess.run(["apt-config", "dump", "--no-empty"], check=True, stdout=subprocess.PIPE, text=True).stdout
    way = [line for line in known.splitlines() if line.startswith(MIRRORS)]
    (root / "etc/apt/apt.conf.d/00machine").write_text("".join(f"{line}\n" for line in way))
    authorities = Path("etc/ssl/certs/ca-certificates.crt")
    if (root / authorities).exists():
        shutil.copy(Path("/") / authorities, root / authorities)


@contextlib.contextmanager
def booted(root: Path, cache: Path, log: Path) -> Iterator[Container]:
    """systemd on a root directory, until its units are up."""
    group = _cgroups() / f"nvmuser-test-{os.getpid()}"
    group.mkdir()
    argv = ["sh", "-c", 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"', "sh", str(group)]
    argv += ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--cgroup", "--uts", "--ipc"]
    argv += ["sh", "-c", START, "sh", str(root), str(cache), PATH]
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    try:
        container = Container(root, _first_child(process), log)
        _wait_until_up(container, process)
        yield container
    finally:
        process.kill()
        process.wait()
        for directory in (*sorted(group.glob("**/"), reverse=True), group):
            _remove(directory)


def _remove(group: Path) -> None:
    """A control group's processes have been killed: it can be removed once they are gone."""
    for _ in range(200):
        try:
            group.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.05)


def _cgroups() -> Path:
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return next(Path(words[1]) for words in mounts if words[2] == "cgroup2")


def _first_child(process: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.01)
    raise AssertionError("the container ended")


def _wait_until_up(container: Container, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        state = container.run("systemctl", "is-system-running", check=False).strip()
        if state in ("running", "degraded"):
            return
        time.sleep(0.1)
    raise AssertionError(f"systemd did not come up: {container.log}")
