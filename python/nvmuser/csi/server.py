"""The process that serves CSI: its socket, and how an error is answered.

Who reaches the socket may do everything: CSI has no credentials, and its socket is kubelet's. What the driver itself
may do is the API's matter, by the token that it was given.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from nvmuser import __version__, grpc_server
from nvmuser.client.aio import AsyncClient
from nvmuser.csi.controller import Controller
from nvmuser.csi.messages import ACCESSIBILITY_CONSTRAINTS, CLASSES, CONTROLLER_SERVICE, ONLINE, PACKAGE, SERVICES
from nvmuser.csi.node import Node
from nvmuser.csi.refusal import Refused, code_of
from nvmuser.errors import NvmuserError

NAME = "csi.nvmuser"
TOPOLOGY = f"topology.{NAME}/node"
_WORDS = re.compile(r"(?<!^)(?=[A-Z])")

log = logging.getLogger(__name__)


class Identity:
    """The calls about the driver itself."""

    def __init__(self, api: AsyncClient) -> None:
        self._api = api

    async def get_plugin_info(self, _: Any) -> Any:
        return CLASSES["GetPluginInfoResponse"](name=NAME, vendor_version=__version__)

    async def get_plugin_capabilities(self, _: Any) -> Any:
        capability, kind = CLASSES["PluginCapability"], CLASSES["Kind"]
        services = [capability(service=kind(type=one)) for one in (CONTROLLER_SERVICE, ACCESSIBILITY_CONSTRAINTS)]
        growth = capability(volume_expansion=kind(type=ONLINE))
        return CLASSES["GetPluginCapabilitiesResponse"](capabilities=[*services, growth])

    async def probe(self, _: Any) -> Any:
        """Whether the API answers, and knows us."""
        try:
            await self._api.request("GET", "/v1/principal")
        except NvmuserError as error:
            raise Refused("FAILED_PRECONDITION", str(error)) from error
        return CLASSES["ProbeResponse"](ready=CLASSES["BoolValue"](value=True))


def _handler(call: str, act: Callable[[Any], Awaitable[Any]]) -> Any:
    async def handle(request: Any, context: Any) -> Any:
        try:
            return await act(request)
        except (Refused, NvmuserError) as error:
            code, text = code_of(error), str(error)
        except Exception as error:
            log.exception("%s", call)
            code, text = "INTERNAL", f"{type(error).__name__}: {error}"
        await context.abort(getattr(grpc.StatusCode, code), text)

    return grpc.unary_unary_rpc_method_handler(
        handle,
        request_deserializer=CLASSES[f"{call}Request"].FromString,
        response_serializer=CLASSES[f"{call}Response"].SerializeToString,
    )


def _handlers(parts: dict[str, object]) -> list[Any]:
    return [
        grpc.method_handlers_generic_handler(
            f"{PACKAGE}.{service}",
            {call: _handler(call, getattr(parts[service], _WORDS.sub("_", call).lower())) for call in calls},
        )
        for service, calls in SERVICES.items()
    ]


async def serve(api: AsyncClient, place: Path, node_id: str, started: Callable[[], None]) -> int:
    """Serve the three services until SIGTERM or SIGINT. Returns the number of the signal.

    :param place: of the socket, which is made for root, or who runs this, alone.
    :param started: called when calls are taken.
    :raises ConflictError: another process listens there.
    """
    segments = {TOPOLOGY: node_id}
    parts = {
        "Identity": Identity(api),
        "Controller": Controller(api, segments),
        "Node": Node(api, node_id, segments),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(_handlers(parts))
    grpc_server.listen_unix(server, place, f"--endpoint {place}")
    async with api:
        return await grpc_server.run(server, started)
