"""An etcd of our own on this machine: for demonstrations, measurements and tests of fleets."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nvmuser.errors import SetupError

_START_S = 20.0


def binary() -> str:
    """The path of etcd.

    :raises SetupError: it is not installed.
    """
    if found := shutil.which("etcd"):
        return found
    raise SetupError("etcd is not installed: `apt-get install etcd-server`")


def free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server((address, 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass
class Etcd:
    """One member. It can be killed and started again.

    :param server: certificate and key by which clients know it; None: no TLS.
    :param ca: the authority of clients' certificates.
    """

    directory: Path
    server: tuple[Path, Path] | None = None
    ca: Path | None = None
    address: str = "127.0.0.1"
    name: str = "one"
    cluster: str = ""
    """Names and addresses of all members, where there are several."""
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    ports: tuple[int, int] = field(default=(0, 0), init=False)

    def __post_init__(self) -> None:
        client, peer = free_ports(2, self.address)
        self.ports = (client, peer)

    @property
    def url(self) -> str:
        return f"{'https' if self.server else 'http'}://{self.address}:{self.ports[0]}"

    @property
    def peer(self) -> str:
        """Its address for other members."""
        return f"http://{self.address}:{self.ports[1]}"

    def _command(self) -> list[str]:
        peer, cluster = self.peer, self.cluster or f"{self.name}={self.peer}"
        words = [binary(), "--name", self.name, "--data-dir", str(self.directory / "data"), "--log-level", "error"]
        words += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url]
        words += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", cluster]
        words += ["--heartbeat-interval", "20", "--election-timeout", "200"]  # a second sooner back after a kill
        if self.server:
            words += ["--cert-file", str(self.server[0]), "--key-file", str(self.server[1])]
        if self.ca:
            words += ["--client-cert-auth", "--trusted-ca-file", str(self.ca)]
        return words

    def start(self) -> None:
        """Start, and wait until it takes connections.

        :raises SetupError: it is not installed, or does not start.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "etcd.log").open("ab") as log:
            self.process = subprocess.Popen(self._command(), stdout=log, stderr=log)
        end = time.monotonic() + _START_S
        while time.monotonic() < end and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex((self.address, self.ports[0])) == 0:
                    return
            time.sleep(0.02)
        self.kill()
        raise SetupError(f"etcd does not start; see {self.directory / 'etcd.log'}")

    def kill(self) -> None:
        """kill -9. Nothing happens to one that does not run."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def running(etcd: Etcd) -> Iterator[Etcd]:
    """A member for as long as the block lasts.

    :raises SetupError: it is not installed, or does not start.
    """
    etcd.start()
    try:
        yield etcd
    finally:
        etcd.kill()
