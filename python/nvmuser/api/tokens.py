"""Endpoints for who may use the API, for admins: a token is made, shown once, and taken away. Only digests are kept.

What is kept and how it is made are `nvmuser.store.credentials`'; each change is an event, without the secret.
"""

from __future__ import annotations

import asyncio
from typing import Any

from nvmuser.api import bodies, schemas
from nvmuser.api.host import Host
from nvmuser.api.problems import Problem
from nvmuser.api.routing import Call, Endpoint, Reply
from nvmuser.store.credentials import Credential, der, new_token, of_certificate
from nvmuser.store.events import acting

_FIELDS = {"name": str, "role": str, "lifetime_s": int, "certificate": str}


class Tokens:
    """Of one host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def endpoints(self) -> list[Endpoint]:
        gone = {"type": "object", "properties": {"deleted": {"type": "string"}}, "required": ["deleted"]}
        return [
            Endpoint("GET", "/v1/tokens", self.list, "list_tokens",
                     "List tokens and client certificates, without their secrets.", "admin",
                     results={200: schemas.page(schemas.ref("token"))}),
            Endpoint("POST", "/v1/tokens", self.create, "create_token",
                     "Make a token, which this answer alone shows, or let a client certificate (PEM) in.", "admin",
                     body=schemas.ref("token", "spec"), results={201: schemas.ref("token")}),
            Endpoint("DELETE", "/v1/tokens/{name}", self.delete, "delete_token",
                     "Revoke a token or a certificate.", "admin", results={200: gone}),
        ]  # fmt: skip

    async def list(self, call: Call) -> Reply:
        return Reply({"items": [one.to_json() for one in await self._host.credentials()], "next": None})

    async def create(self, call: Call) -> Reply:
        secret, one = _made(bodies.mapping(await call.body()))
        with acting(call.principal.actor):
            await asyncio.to_thread(self._host.store.add_credential, one)
        shown = one.to_json() | ({"token": secret} if secret else {})
        return Reply(shown, 201, {"Cache-Control": "no-store"})

    async def delete(self, call: Call) -> Reply:
        name = call.path["name"]
        with acting(call.principal.actor):
            await asyncio.to_thread(self._host.store.remove_credential, name)
        return Reply({"deleted": name})


def _made(data: dict[str, Any]) -> tuple[str, Credential]:
    """The secret, which a certificate has none of, and what is kept.

    :raises Problem: the body is none of a token. :raises UsageError: the name, the role or the certificate is none.
    """
    for field, value in data.items():
        if field not in _FIELDS:
            raise Problem(400, "usage", f"token.{field[:80]}: no such field", f"/{field}")
        if type(value) is not _FIELDS[field]:
            raise Problem(400, "usage", f"token.{field}: expected a {_FIELDS[field].__name__}", f"/{field}")
    lifetime = data.get("lifetime_s", 0)
    if not 0 <= lifetime <= schemas.LIFETIME_MAX_S:
        raise Problem(400, "usage", "token.lifetime_s: seconds, 0 for ever", "/lifetime_s")
    if "name" not in data:
        raise Problem(400, "usage", "token.name: is missing", "/name")
    name, role = data["name"], data.get("role", "viewer")
    if "certificate" in data:
        return "", of_certificate(name, role, der(data["certificate"], "token.certificate"), lifetime)
    return new_token(name, role, lifetime)
