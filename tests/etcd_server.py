"""A real etcd on loopback that tests may harm, and certificates for it."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nvmuser.bench.measure import etcd
from nvmuser.bench.measure.etcd import free_ports as free_ports


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
            *("-days", "0" if expired else "30", "-extfile", "extensions", "-out", f"{name}.pem"),
        )
        return self.directory / f"{name}.pem", self.directory / f"{name}.key"

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.directory, check=True, capture_output=True)


@dataclass
class Etcd(etcd.Etcd):
    """One member; it can be killed, stopped and started again, with its data or without."""

    def freeze(self, frozen: bool = True) -> None:
        """SIGSTOP, or SIGCONT."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def lose_data(self) -> None:
        """Of a member that does not run."""
        shutil.rmtree(self.directory / "data")


@contextmanager
def cluster(directory: Path) -> Iterator[list[Etcd]]:
    """Three members, of which one may be killed."""
    members = [Etcd(directory / name, name=name) for name in ("a", "b", "c")]
    try:
        for member in members:
            member.cluster = ",".join(f"{one.name}={one.peer}" for one in members)
            member.start()
        yield members
    finally:
        for member in members:
            member.kill()


@contextmanager
def running(
    directory: Path, certificates: Certificates | None = None, server: tuple[Path, Path] | None = None
) -> Iterator[Etcd]:
    """A member for as long as the block lasts."""
    with etcd.running(Etcd(directory, server, certificates.ca if certificates else None)) as member:
        assert isinstance(member, Etcd)
        yield member
