"""CSI's controller service: volumes are made, grown and deleted through the API of this node's nvmuser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from nvmuser.client.aio import AsyncClient
from nvmuser.client.answers import Object
from nvmuser.csi import volumes
from nvmuser.csi.messages import CLASSES, CREATE_DELETE_VOLUME, EXPAND_VOLUME, LIST_VOLUMES
from nvmuser.csi.refusal import Refused, demand
from nvmuser.errors import ConflictError, NotFoundError

_CAPABILITIES = (CREATE_DELETE_VOLUME, LIST_VOLUMES, EXPAND_VOLUME)


async def find(api: AsyncClient, volume_id: str) -> Object:
    """:raises Refused: there is none."""
    try:
        if volumes.is_ours(volume_id):
            return await api.get("volumes", volume_id)
    except NotFoundError:
        pass
    raise Refused("NOT_FOUND", f"there is no volume {volume_id}")


class Controller:
    """The calls.

    :param segments: where volumes that are made here can be reached: this node.
    """

    def __init__(self, api: AsyncClient, segments: dict[str, str]) -> None:
        self._api = api
        self._segments = segments

    async def controller_get_capabilities(self, _: Any) -> Any:
        kinds = [CLASSES["ServiceCapability"](rpc=CLASSES["Kind"](type=kind)) for kind in _CAPABILITIES]
        return CLASSES["ControllerGetCapabilitiesResponse"](capabilities=kinds)

    async def create_volume(self, request: Any) -> Any:
        name = volumes.volume_name(request.name)
        self._check(request)
        size = volumes.size_of(request.capacity_range)
        fields, context = volumes.parameters_of(request.parameters)
        try:
            found = await self._api.create("volumes", {"name": name, "size": size, **fields})
        except ConflictError:  # a call that is repeated, or a conflict in itself
            found = await self._same(name, request, fields)
        return CLASSES["CreateVolumeResponse"](volume=self._described(found, context))

    async def _same(self, name: str, request: Any, fields: dict[str, Any]) -> Object:
        """The volume of this name if it is the one that is asked for.

        :raises Refused: it is another one.
        """
        found = await self._api.get("volumes", name)
        other = [key for key, value in fields.items() if found.spec.get(key, _DEFAULTS[key]) != value]
        if other or not volumes.is_in_range(found.status["size"], request.capacity_range):
            raise Refused("ALREADY_EXISTS", f"there is a volume {request.name} with another {(other or ['size'])[0]}")
        return found

    def _check(self, request: Any) -> None:
        demand(request.volume_capabilities, "volume_capabilities")
        if fault := volumes.fault_of(request.volume_capabilities):
            raise Refused("INVALID_ARGUMENT", fault)
        if request.HasField("volume_content_source"):
            raise Refused("INVALID_ARGUMENT", "volume_content_source: volumes are not made of others here")
        places = [dict(place.segments) for place in request.accessibility_requirements.requisite]
        if places and not any(place.items() <= self._segments.items() for place in places):
            raise Refused("RESOURCE_EXHAUSTED", "accessibility_requirements: volumes made here are of this node alone")

    def _described(self, found: Object, context: dict[str, str]) -> Any:
        place = CLASSES["Topology"](segments=self._segments)
        return CLASSES["Volume"](
            volume_id=found.name, capacity_bytes=found.status["size"], volume_context=context,
            accessible_topology=[place],
        )  # fmt: skip

    async def delete_volume(self, request: Any) -> Any:
        demand(request.volume_id, "volume_id")
        try:
            if volumes.is_ours(request.volume_id):
                await self._api.delete("volumes", request.volume_id, wipe=True)
        except NotFoundError:
            pass  # deleted before
        return CLASSES["DeleteVolumeResponse"]()

    async def validate_volume_capabilities(self, request: Any) -> Any:
        demand(request.volume_id, "volume_id")
        demand(request.volume_capabilities, "volume_capabilities")
        await find(self._api, request.volume_id)
        if fault := volumes.fault_of(request.volume_capabilities):
            return CLASSES["ValidateVolumeCapabilitiesResponse"](message=fault)
        confirmed = CLASSES["Confirmed"](
            volume_context=request.volume_context, volume_capabilities=request.volume_capabilities,
            parameters=request.parameters,
        )  # fmt: skip
        return CLASSES["ValidateVolumeCapabilitiesResponse"](confirmed=confirmed)

    async def list_volumes(self, request: Any) -> Any:
        most, after = request.max_entries, request.starting_token
        if most < 0:
            raise Refused("INVALID_ARGUMENT", f"max_entries: {most}")
        if after and not volumes.is_ours(after):
            raise Refused("ABORTED", f"starting_token: {after} is none")
        found = [one async for one in self._all() if one.name > after]
        page = found[:most] if most else found
        entries = [CLASSES["ListEntry"](volume=self._described(one, {})) for one in page]
        token = page[-1].name if len(page) < len(found) else ""
        return CLASSES["ListVolumesResponse"](entries=entries, next_token=token)

    async def _all(self) -> AsyncIterator[Object]:
        async for one in self._api.list("volumes"):
            if volumes.is_ours(one.name):
                yield one

    async def controller_expand_volume(self, request: Any) -> Any:
        demand(request.volume_id, "volume_id")
        if not request.HasField("capacity_range"):
            raise Refused("INVALID_ARGUMENT", "capacity_range is missing")
        found = await find(self._api, request.volume_id)
        size = volumes.size_of(request.capacity_range, default=found.status["size"])
        if size > found.status["size"]:
            found = await self._api.patch("volumes", request.volume_id, {"size": size})
        elif not volumes.is_in_range(found.status["size"], request.capacity_range):
            raise Refused("OUT_OF_RANGE", f"volume {request.volume_id} has {found.status['size']} bytes; none shrinks")
        return CLASSES["ControllerExpandVolumeResponse"](capacity_bytes=found.status["size"])


_DEFAULTS = {"backend": "file", "pool": "", volumes.THIN: False}
