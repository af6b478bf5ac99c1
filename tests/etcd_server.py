"""A real etcd on loopback, and certificates for it."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

START_S = 20.0


def binary() -> str:
    """The path of etcd.

    :raises RuntimeError: it is not installed.
    """
    if found := shutil.which("etcd"):
        return found
    raise RuntimeError("etcd is missing: ci/install-packages ci/debian-packages-tests.txt")


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass
class Certificates:
    """An authority, and certificates of its own, made by openssl(1)."""

    directory: Path

    @property
    def ca(self) -> Path:
        return self.directory / "ca.pem"

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"),
            *("-subj", f"/CN=authority {self.directory.name}", "-keyout", "ca.key", "-out", "ca.pem"),
        )

    def issue(self, name: str, *, expired: bool = False) -> tuple[Path, Path]:
        """Certificate and key for 127.0.0.1, server and client."""
        self._openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}"),
            *("-keyout", f"{name}.key", "-out", f"{name}.csr"),
        )
        extensions = self.directory / "extensions"
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n")
        self._openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "-1" if expired else "30", "-extfile", "extensions", "-out", f"{name}.pem"),
        )
        return self.directory / f"{name}.pem", self.directory / f"{name}.key"

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.directory, check=True, capture_output=True)


@dataclass
class Etcd:
    """One member; it can be killed, stopped and started again, with its data or without."""

    directory: Path
    certificates: Certificates | None = None
    server: tuple[Path, Path] | None = None
    port: int = 0
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _peer: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        port, self._peer = free_ports(2)
        self.port = self.port or port

    @property
    def url(self) -> str:
        return f"{'https' if self.server else 'http'}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        peer = f"http://127.0.0.1:{self._peer}"
        words = [binary(), "--name", "one", "--data-dir", str(self.directory / "data"), "--log-level", "error"]
        words += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url]
        words += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"one={peer}"]
        words += ["--heartbeat-interval", "20", "--election-timeout", "200"]  # a second sooner back after a kill
        if self.server and self.certificates:
            cert, key = self.server
            words += ["--cert-file", str(cert), "--key-file", str(key), "--client-cert-auth"]
            words += ["--trusted-ca-file", str(self.certificates.ca)]
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "etcd.log").open("ab") as log:
            self.process = subprocess.Popen([*words, *self.options], stdout=log, stderr=log)
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise RuntimeError(f"etcd does not start: {(self.directory / 'etcd.log').read_text()}")

    def kill(self) -> None:
        """kill -9."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self, frozen: bool = True) -> None:
        """SIGSTOP, or SIGCONT."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def lose_data(self) -> None:
        """Of a member that does not run."""
        shutil.rmtree(self.directory / "data")


@contextmanager
def running(directory: Path, **options: object) -> Iterator[Etcd]:
    """A member for as long as the block lasts."""
    etcd = Etcd(directory, **options)  # type: ignore[arg-type]
    etcd.start()
    try:
        yield etcd
    finally:
        etcd.kill()


if __name__ == "__main__":
    with running(Path(sys.argv[1])) as member:
        print(member.url, flush=True)
        signal.pause()
