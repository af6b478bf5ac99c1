"""CSI's node service: a volume is published as an NVMe controller, whose socket appears in the pod.

Owns the mounts, and the controllers that it has declared for them. The pod's QEMU (or Cloud Hypervisor) connects to the
socket; the node itself never sees a block device.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from nvmuser.client.aio import AsyncClient
from nvmuser.csi import volumes
from nvmuser.csi.controller import find
from nvmuser.csi.messages import BYTES, CLASSES, GET_VOLUME_STATS
from nvmuser.csi.mounts import bind, mounted, unbind
from nvmuser.csi.refusal import Refused, demand
from nvmuser.errors import NotFoundError


class Node:
    """The calls.

    :param node_id: this node's name.
    :param segments: its place, as volumes have it.
    """

    def __init__(self, api: AsyncClient, node_id: str, segments: dict[str, str]) -> None:
        self._api = api
        self._node_id = node_id
        self._segments = segments
        self._changing = asyncio.Lock()
        """Mounts are looked at and changed by one call at a time."""

    async def node_get_info(self, _: Any) -> Any:
        place = CLASSES["Topology"](segments=self._segments)
        return CLASSES["NodeGetInfoResponse"](node_id=self._node_id, accessible_topology=place)

    async def node_get_capabilities(self, _: Any) -> Any:
        capability = CLASSES["ServiceCapability"](rpc=CLASSES["Kind"](type=GET_VOLUME_STATS))
        return CLASSES["NodeGetCapabilitiesResponse"](capabilities=[capability])

    async def node_publish_volume(self, request: Any) -> Any:
        demand(request.volume_id, "volume_id")
        demand(request.target_path, "target_path")
        if not request.HasField("volume_capability"):
            raise Refused("INVALID_ARGUMENT", "volume_capability is missing")
        if fault := volumes.fault_of([request.volume_capability]):
            raise Refused("INVALID_ARGUMENT", fault)
        if request.readonly:
            raise Refused("INVALID_ARGUMENT", "readonly: the guest would see a disk that it may write to")
        await find(self._api, request.volume_id)
        async with self._changing:
            await self._publish(request, Path(request.target_path))
        return CLASSES["NodePublishVolumeResponse"]()

    async def _publish(self, request: Any, target: Path) -> None:
        name = request.volume_id
        others = [path for path in mounted(name) if path != target]
        if others:
            raise Refused("FAILED_PRECONDITION", f"volume {name} is published at {others[0]}, and serves one guest")
        _, access = volumes.parameters_of(request.volume_context)
        controller = await self._api.put("controllers", name, {"namespaces": [name], **access})
        if target in mounted(name):
            return
        socket = Path(controller.status["socket"])
        bind(socket if request.volume_capability.HasField("block") else socket.parent, target)

    async def node_unpublish_volume(self, request: Any) -> Any:
        demand(request.volume_id, "volume_id")
        demand(request.target_path, "target_path")
        async with self._changing:
            unbind(Path(request.target_path))
            if volumes.is_ours(request.volume_id) and not mounted(request.volume_id):
                with contextlib.suppress(NotFoundError):  # a call that is repeated
                    await self._api.delete("controllers", request.volume_id)
        return CLASSES["NodeUnpublishVolumeResponse"]()

    async def node_get_volume_stats(self, request: Any) -> Any:
        demand(request.volume_id, "volume_id")
        demand(request.volume_path, "volume_path")
        found = await find(self._api, request.volume_id)
        if Path(request.volume_path) not in mounted(request.volume_id):
            raise Refused("NOT_FOUND", f"volume {request.volume_id} is not published at {request.volume_path}")
        usage = CLASSES["VolumeUsage"](total=found.status["size"], unit=BYTES)
        return CLASSES["NodeGetVolumeStatsResponse"](usage=[usage])
