"""One way to a remote subsystem: an address or a host's name, and a port. Pure; names are resolved by
`nvmuser.reconcile.remotes`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from nvmuser.errors import UsageError

_ADDRESS = r"[A-Za-z0-9:][A-Za-z0-9._:%-]{0,252}"
"""Of a name or an address; what it leads to is found out when it is resolved."""
_TEXT = re.compile(r"(?:\[(?P<six>[^\]]*)\]|(?P<host>[^:\[\]]+))(?::(?P<port>\d+))?")

DEFAULT_PORT = 4420
"""IANA's for NVMe over Fabrics."""


def bracketed(address: str) -> str:
    """An address as it stands before a port (RFC 3986, section 3.2.2)."""
    return f"[{address}]" if ":" in address else address


@dataclass(frozen=True)
class RemotePath:
    """One way to a remote subsystem. Over NVMe/TCP."""

    rules: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "address": {"pattern": _ADDRESS},
        "port": {"minimum": 1, "maximum": 65535},
    }
    renamed: ClassVar[Mapping[str, str]] = {"name": "address"}
    """What stores and specifications of earlier versions call it."""

    address: str
    """IPv4, IPv6 (without brackets), or a host's name, which is resolved at each attachment."""
    port: int = DEFAULT_PORT

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise UsageError(f"remote path {self}: port {self.port}: 1 to 65535")
        if not re.fullmatch(_ADDRESS, self.address):
            raise UsageError(f"remote path {self}: {self.address!r} is neither an address nor a host's name")

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{bracketed(self.address)}:{self.port}"

    @property
    def literal(self) -> str:
        """The address in its shortest form; empty when it is a name."""
        try:
            return str(ipaddress.ip_address(self.address))
        except ValueError:
            return ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `10.0.0.1`, `store.example:4420`, `::1` or `[::1]:4420`.

        :raises UsageError: it is neither.
        """
        try:
            return cls(str(ipaddress.IPv6Address(text)))
        except ValueError:
            pass
        found = _TEXT.fullmatch(text)
        if not found:
            raise UsageError(f"path {text!r}: expected HOST[:PORT], such as 10.0.0.1, store.example:4420 or [::1]:4420")
        return cls(found["six"] or found["host"] or "", int(found["port"] or DEFAULT_PORT))
