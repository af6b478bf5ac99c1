"""A client of the API of a host (docs/api.md): `Client`, and `AsyncClient` for asyncio. Needs the extra `client`.

    with Client("https://host:8460", token=TOKEN) as host:
        host.put("volumes", "data", {"size": "10G"})
        for event in host.watch():
            ...

Errors are those of `nvmuser.errors` that the host itself has raised, with its words.
"""

from nvmuser.client.aio import AsyncClient
from nvmuser.client.answers import Event, Object, Operation
from nvmuser.client.sync import Client

__all__ = ["AsyncClient", "Client", "Event", "Object", "Operation"]
