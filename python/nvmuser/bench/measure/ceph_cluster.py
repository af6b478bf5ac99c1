"""A Ceph for measurements and tests: one monitor and one OSD in a directory, while a block lasts.

Owns both processes, and that they end with it. It needs root and Debian's packages ceph-mon, ceph-osd, ceph-common. One
copy of everything, on a sparse file: for nothing that is to be kept.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nvmuser.errors import SetupError

POOL = "rbd"
PROGRAMS = ("ceph-mon", "ceph-osd", "ceph", "rbd", "monmaptool", "ceph-authtool")
_UP_S = 60.0
_LOOK_S = 0.1
_STOP_S = 10.0
_CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v2:{address}:{port}]
mon initial members = a
public addr = {address}
cluster addr = {address}
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
keyring = {directory}/keyring
run dir = {directory}/run
log file = {directory}/$name.log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
[mon]
mon data = {directory}/mon
mon data avail crit = 1
mon data avail warn = 1
[osd]
osd data = {directory}/osd
osd objectstore = bluestore
bluestore block size = {size}
osd memory target = 939524096
osd memory cache min = 134217728
osd op num shards = 1
osd op num threads per shard = 2
"""


def missing() -> list[str]:
    """Programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


class CephCluster:
    """A cluster that runs.

    :param size: bytes of the OSD's file, which is sparse.
    :param address: one of this machine, or of the network namespace that this process is in.
    """

    def __init__(self, directory: Path, size: int = 4 << 30, address: str = "127.0.0.1") -> None:
        self.directory = directory
        self.conf = directory / "ceph.conf"
        self.keyring = directory / "keyring"
        self._mon: subprocess.Popen[bytes] | None = None
        self._osd: subprocess.Popen[bytes] | None = None
        with socket.create_server((address, 0)) as listening:
            port = listening.getsockname()[1]
        self._fsid, self._port, self._address = str(uuid.uuid4()), port, address
        for name in ("mon", "osd", "run"):
            (directory / name).mkdir(parents=True)
        where = {"directory": directory, "address": address, "port": port}
        text = _CONFIGURATION.format(fsid=self._fsid, size=size, **where)
        self.conf.write_text(text, encoding="utf-8")

    def run(self, *words: str | Path, data: str = "", deadline: float = 60.0) -> str:
        """One of Ceph's programs, with our configuration; its output.

        :raises SetupError: it failed.
        """
        program, *rest = map(str, words)
        argv = [program, "-c", str(self.conf), *rest] if program in ("ceph", "rbd") else [program, *rest]
        try:
            done = subprocess.run(argv, input=data, capture_output=True, text=True, timeout=deadline, check=False)
        except subprocess.TimeoutExpired:
            raise SetupError(f"{' '.join(argv)}: no answer within {deadline:g} s") from None
        if done.returncode != 0:
            raise SetupError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
        return done.stdout

    def start(self) -> None:
        """Make everything, and wait until images can be made.

        :raises SetupError: that does not come about.
        """
        admin = [word for who in ("mon", "osd", "mgr") for word in ("--cap", who, "allow *")]
        self.run("ceph-authtool", "-C", self.keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        self.run("ceph-authtool", self.keyring, "--gen-key", "-n", "client.admin", *admin)
        where = ["--addv", "a", f"[v2:{self._address}:{self._port}]", "--fsid", self._fsid]
        self.run("monmaptool", "--create", "--clobber", *where, self.directory / "monmap")
        monmap: list[str | Path] = ["--monmap", self.directory / "monmap", "--keyring", self.keyring]
        self.run("ceph-mon", "-c", self.conf, "--mkfs", "-i", "a", *monmap)
        self.start_mon()
        self._make_osd()
        self.start_osd()
        self.run("ceph", "osd", "pool", "create", POOL, "8")
        self.run("rbd", "pool", "init", POOL)

    def _make_osd(self) -> None:
        secret, osd = self.run("ceph-authtool", "--gen-print-key").strip(), str(uuid.uuid4())
        self.run("ceph", "osd", "new", osd, "-i", "-", data=json.dumps({"cephx_secret": secret}))
        own = self.directory / "osd/keyring"
        self.run("ceph-authtool", own, "-C", "-n", "osd.0", "--add-key", secret)
        self.keyring.write_text(self.keyring.read_text() + own.read_text())
        self.run("ceph-osd", "-c", self.conf, "-i", "0", "--mkfs", "--osd-uuid", osd)

    def start_mon(self) -> None:
        """Start the monitor, and wait for its quorum."""
        self._mon = self._daemon("ceph-mon", "a")
        self._wait(lambda: bool(self.run("ceph", "--connect-timeout", "5", "mon", "stat")))

    def start_osd(self) -> None:
        """Start the OSD, and wait until it is up."""
        self._osd = self._daemon("ceph-osd", "0")
        self._wait(lambda: json.loads(self.run("ceph", "osd", "stat", "-f", "json"))["num_up_osds"] == 1)

    def kill_mon(self) -> None:
        _kill(self._mon)

    def kill_osd(self) -> None:
        _kill(self._osd)

    @property
    def pids(self) -> dict[str, int]:
        """Of the daemons that were started, by their programs."""
        found = {"ceph-mon": self._mon, "ceph-osd": self._osd}
        return {program: process.pid for program, process in found.items() if process}

    def _daemon(self, program: str, name: str) -> subprocess.Popen[bytes]:
        argv = [program, "-c", str(self.conf), "-i", name, "-f"]
        with (self.directory / f"{program}.out").open("ab") as output:
            return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def _wait(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _UP_S
        while True:
            try:
                if ready():
                    return
            except SetupError:
                pass
            if time.monotonic() > deadline:
                raise SetupError(f"{self.directory}: Ceph is not up within {_UP_S:g} s; its logs are there")
            time.sleep(_LOOK_S)

    def stop(self) -> None:
        """End both."""
        _kill(self._osd)
        _kill(self._mon)


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None and process.poll() is None:
        process.kill()
        process.wait(_STOP_S)


@contextmanager
def running(directory: Path, size: int = 4 << 30) -> Iterator[CephCluster]:
    """A cluster for as long as the block lasts.

    :raises SetupError: programs are missing, or it does not come up.
    """
    if absent := missing():
        raise SetupError(f"{', '.join(absent)}: not installed (Debian: ceph-mon ceph-osd ceph-common)")
    cluster = CephCluster(directory, size)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
