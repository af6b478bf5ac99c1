"""The payload of VERSION, the first message of a connection, and the only one with JSON in it.

It is described in docs/interop/vfio-user.rst in QEMU's source.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from nvmf_vfio.protocol.header import ProtocolError, take

_MAX_VERSION = 4096
_MAX_VERSION_OBJECTS = 32


@dataclass(frozen=True, slots=True)
class Version:
    """VERSION, request and reply: the protocol's version and a JSON object of capabilities.

    vfio-user.rst, VFIO_USER_VERSION; vfio-user.h, `struct vfio_user_version`.

    :ivar major: versions with different ones do not work together.
    :ivar minor: the lower one of both sides counts.
    :ivar capabilities: by name, as JSON has them; sizes among them are bytes.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<HH")

    major: int
    minor: int
    capabilities: dict[str, Any] = field(default_factory=dict)

    def pack(self) -> bytes:
        """The payload of a request or a reply, with the zero byte at the end of its JSON."""
        text = json.dumps({"capabilities": self.capabilities}).encode() + b"\0"
        return self.LAYOUT.pack(self.major, self.minor) + text

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """The version in a request or a reply.

        :raises ProtocolError: too short, not JSON, not an object, or larger than an implementation has reason to send.
        """
        major, minor = take(cls.LAYOUT, body, "VERSION")
        text = body[cls.LAYOUT.size :].rstrip(b"\0")
        # Capabilities are packed again for each target: nothing may nest as deep as the interpreter can go.
        if len(text) > _MAX_VERSION or text.count(b"{") + text.count(b"[") > _MAX_VERSION_OBJECTS:
            raise ProtocolError(f"VERSION: capabilities of {len(text)} bytes, or too many objects in them")
        try:
            data = json.loads(text) if text else {}
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"VERSION: capabilities are not JSON: {error}") from error
        capabilities = data.get("capabilities", {}) if isinstance(data, dict) else None
        if not isinstance(capabilities, dict):
            raise ProtocolError("VERSION: capabilities are not a JSON object")
        return cls(major, minor, capabilities)
