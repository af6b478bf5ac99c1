"""Where packages are built: the checkout, for the Debian release that this machine runs, else a Debian of that release.

Owns the root directory of the latter, in which everything is done as people do it: `make setup deb`. What set-up makes
of SPDK stays in the cache, below `workshop-RELEASE`: the first time takes as long as building SPDK does, later ones a
minute or two. The rest of the cache is shared by hard links.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from container import bootstrap

LINTIAN = ("lintian", "--allow-root", "--fail-on", "error,warning")
NOT_SHARED = ("spdk-*", "rbd-*", "bindings", "libvfio-*", "build", "apt", "log", "*.lock", "workshop-*")
"""What depends on the release, or is written to."""
ENTER = """
set -e
root=$1 cache=$2
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mkdir -p "$root/root/.cache/nvmuser"
mount --bind "$cache" "$root/root/.cache/nvmuser"
shift 2
exec chroot "$root" "$@"
"""
ENVIRONMENT = (
    "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "PIP_CERT=/etc/ssl/certs/ca-certificates.crt"
)  # fmt: skip


class Here:
    """The checkout's own set-up, on this machine's Debian."""

    def build(self, tree: Path, out: Path) -> None:
        """Make the packages of a copy of the checkout, which lies in `out`."""
        command = ["dpkg-buildpackage", "--build=binary", "--unsigned-changes", "--no-check-builddeps"]
        subprocess.run(command, cwd=tree, check=True, env={**os.environ, "NVMUSER_PYTHON": sys.executable})

    def examine(self, packages: list[Path]) -> str:
        """What lintian finds; empty: nothing."""
        done = subprocess.run([*LINTIAN, *packages], capture_output=True, text=True, check=False)
        return done.stdout if done.returncode else ""


class Workshop:
    """A Debian of another release with what building needs, without a service manager."""

    def __init__(self, suite: str, root: Path, cache: Path) -> None:
        self._root = root
        self._cache = cache / f"workshop-{suite}"
        bootstrap(suite, root, *_listed("debian-packages.txt"), *_listed("debian-packages-deb.txt"), "lintian")
        _share(cache, self._cache)
        self._run("apt-get", "-q", "update")

    def build(self, tree: Path, out: Path) -> None:
        """Set up a copy of the checkout, make its packages, and bring them to `out`."""
        shutil.copytree(tree, self._root / "work/nvmuser", symlinks=True)
        self._run("env", "-C", "/work/nvmuser", "make", "setup", "deb")
        for package in (self._root / "work/nvmuser/dist").glob("*.deb"):
            shutil.copy2(package, out)

    def examine(self, packages: list[Path]) -> str:
        """What that release's lintian finds; empty: nothing."""
        done = self._start(*LINTIAN, *(f"/work/nvmuser/dist/{package.name}" for package in packages))
        return done.stdout if done.returncode else ""

    def _run(self, *words: str) -> None:
        done = self._start(*words)
        assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout[-4000:]}"

    def _start(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "sh"]
        return subprocess.run(
            [*argv, self._root, self._cache, "/usr/bin/env", "-i", *ENVIRONMENT, *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip


def _listed(name: str) -> list[str]:
    lines = (Path(__file__).resolve().parents[2] / "ci" / name).read_text().splitlines()
    return [word for line in lines for word in line.partition("#")[0].split()]


def _share(cache: Path, own: Path) -> None:
    """What is the same in each release need not be fetched again."""
    own.mkdir(exist_ok=True)
    for entry in cache.iterdir():
        if not any(entry.match(pattern) for pattern in NOT_SHARED) and not (own / entry.name).exists():
            subprocess.run(["cp", "-al", entry, own / entry.name], check=True)
