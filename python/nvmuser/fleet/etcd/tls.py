"""Who we are to etcd, and who it must be: certificates, and in words why a handshake fails.

gRPC says of a failed handshake only that there was one. So the reason is found out by Python's own TLS, with the same
files, when a connection could not be made.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import grpc

from nvmuser.errors import SetupError, UsageError, reason_of

_LOOK_S = 0.4


@dataclass(frozen=True)
class Tls:
    """Files in PEM: the authority that both sides trust, and this side's certificate with its key."""

    ca: Path
    cert: Path
    key: Path

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC takes.

        :raises SetupError: a file cannot be read, or is not what it should be.
        """
        self.check()
        ca, key, cert = (_read(path) for path in (self.ca, self.key, self.cert))
        return grpc.ssl_channel_credentials(ca, key, cert)

    def check(self) -> None:
        """:raises SetupError: a file cannot be read, they do not belong together, or the certificate has expired."""
        self.context()
        if (end := _expiry(_read(self.cert))) and end < datetime.now(UTC):
            raise SetupError(f"{self.cert}: expired on {end:%Y-%m-%d}; renew it")

    def context(self) -> ssl.SSLContext:
        """The same for Python's TLS.

        :raises SetupError: a file cannot be read, or they do not belong together.
        """
        for path in (self.ca, self.cert, self.key):
            _read(path)
        try:
            context = ssl.create_default_context(cafile=str(self.ca))
        except ssl.SSLError as error:
            raise SetupError(f"{self.ca}: no certificate of an authority in PEM") from error
        try:
            context.load_cert_chain(str(self.cert), str(self.key))
        except ssl.SSLError as error:
            mismatch = "MISMATCH" in (error.reason or "")
            what = f"is not the key of {self.cert}" if mismatch else f"not a key in PEM for {self.cert}"
            raise SetupError(f"{self.key}: {what}") from error
        context.set_alpn_protocols(["h2"])
        # gRPC takes authorities that do not say what their keys are for; Python 3.13 would refuse them.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupError(f"{path}: {reason_of(error)}") from error


def _expiry(pem: bytes) -> datetime | None:
    """Until when a certificate holds; None where that cannot be read.

    Python's `ssl` shows only certificates of peers. So `Validity` is looked up in the DER (RFC 5280, 4.1): the first
    sequence of the body that has two times.
    """
    text = pem.decode("ascii", "replace")
    begin, end = text.find("-----BEGIN CERTIFICATE-----"), text.find("-----END CERTIFICATE-----")
    if begin < 0 or end < 0:
        return None
    try:
        body = _elements(_elements(ssl.PEM_cert_to_DER_cert(text[begin : end + 25]))[0][1])[0][1]
        for tag, content in _elements(body):
            times = _elements(content) if tag == _SEQUENCE else []
            if len(times) == 2 and times[1][0] in _TIMES:
                return datetime.strptime(times[1][1].decode(), _TIMES[times[1][0]]).replace(tzinfo=UTC)
    except (ValueError, IndexError):
        pass
    return None


_SEQUENCE = 0x30
_TIMES = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}
"""Tags of DER's UTCTime and GeneralizedTime."""


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of what is in a DER sequence, one after the other.

    :raises IndexError: it ends too early.
    """
    found, at = [], 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size], "big"), at + size
        found.append((tag, der[at : at + length]))
        at += length
    return found


@dataclass(frozen=True)
class Address:
    """One of etcd's addresses for clients."""

    host: str
    port: int
    secure: bool

    @classmethod
    def parse(cls, url: str) -> Address:
        """:raises UsageError: it is no address such as https://etcd1:2379."""
        parts = urlsplit(url)
        try:
            port = parts.port or 2379
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or not port or parts.path not in ("", "/"):
            raise UsageError(f"etcd {url!r}: expected an address such as https://etcd1:2379")
        return cls(parts.hostname, port, parts.scheme == "https")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


async def why_not(address: Address, tls: Tls | None) -> str:
    """Why no connection can be made, in words; empty where one can."""
    context = tls.context() if tls and address.secure else None
    try:
        async with asyncio.timeout(_LOOK_S):
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is refused: {error.verify_message}"
    except ssl.SSLError as error:
        return f"no TLS: {(error.reason or str(error)).replace('_', ' ').lower()}"
    except (OSError, TimeoutError) as error:
        return _of_system(error)
    try:
        return await _verdict(reader) if context else ""
    finally:
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


def _of_system(error: OSError) -> str:
    """asyncio words a refused connection itself, with the address that is said already."""
    number = error.errno
    return os.strerror(number).lower() if number and number > 0 else str(error) or "no answer"


async def _verdict(reader: asyncio.StreamReader) -> str:
    """What the server thinks of our certificate: with TLS 1.3 it says so after the handshake."""
    try:
        async with asyncio.timeout(_LOOK_S):
            return "" if await reader.read(1) else "it hangs up on our certificate"
    except (ssl.SSLError, ConnectionResetError) as error:
        reason = (getattr(error, "reason", "") or "hangs up").replace("_", " ").lower()
        return f"it refuses our certificate: {reason}"
    except TimeoutError:
        return ""
