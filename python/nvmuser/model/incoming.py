"""A controller that is expected at this host, declared from its description at the host where its guest is.

Pure. The description is what `nvmuser controller show --json` prints, and is checked as what a person writes is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvmuser.errors import ConflictError, UsageError
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.identity import device_in_guest
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Volume

_CONTROLLER = ("nqn", "serial", "cntlid")
_VOLUME = ("uuid", "nguid", "eui64", "size", "block_size")
_ACCESS = ("owner", "group", "mode")


def description(controller: Controller, desired: Desired) -> dict[str, Any]:
    """A controller and its volumes in JSON, by which another host can expect it."""
    namespaces = []
    for ns in controller.namespaces:
        volume = desired.get(Key("volume", ns.volume))
        assert isinstance(volume, Volume)
        namespaces.append(
            {
                "nsid": ns.nsid,
                "volume": ns.volume,
                "uuid": volume.uuid,
                "nguid": volume.nguid,
                "eui64": volume.eui64,
                "backend": volume.backend,
                "path": volume.path or None,
                "size": volume.size or None,
                "block_size": volume.block_size,
                "device": device_in_guest(volume),
                "volatile": volume.volatile,
            }
        )
    return controller.to_json() | {"namespaces": namespaces}


def expected(name: str, description: Mapping[str, Any]) -> tuple[Controller, tuple[Volume, ...]]:
    """The controller and the volumes that are to be declared here.

    :raises UsageError: it is no description of a controller, or of one that cannot move.
    """
    try:
        shown = [(int(one["nsid"]), _volume(one)) for one in description["namespaces"]]
        fields = {field: description[field] for field in _CONTROLLER}
        access = {field: description[field] for field in _ACCESS if field in description}
        namespaces = [{"volume": volume.name, "nsid": nsid} for nsid, volume in shown]
        controller = Controller.from_json({"name": name, "namespaces": namespaces, "away": True} | fields | access)
    except (LookupError, TypeError, ValueError) as error:
        raise UsageError(f"not what `nvmuser controller show --json` prints: {error!r}") from None
    if not all((controller.nqn, controller.serial, controller.cntlid)):
        raise UsageError("the description lacks the NQN, serial or id of the controller")
    return controller, tuple(volume for _, volume in shown)


def _volume(shown: Mapping[str, Any]) -> Volume:
    name, path = str(shown["volume"]), str(shown.get("path") or "")
    if shown.get("backend", "file") != "file" or not path:
        raise UsageError(f"volume {name}: only file volumes can move between hosts, on storage that both share")
    if shown["volatile"]:
        raise UsageError(f"volume {name}: its data dies with the target")
    uuid, nguid, eui64 = (str(shown[field]) for field in ("uuid", "nguid", "eui64"))
    if not (uuid and nguid and eui64):
        raise UsageError(f"volume {name}: the description lacks an identifier of it")
    size, block_size = int(shown["size"]), int(shown["block_size"])
    return Volume(name, "file", size, block_size, path=path, uuid=uuid, nguid=nguid, eui64=eui64)


def change(desired: Desired, controller: Controller, volumes: tuple[Volume, ...]) -> Change | None:
    """What has to be declared; None when the controller is expected already.

    :raises ConflictError: there is another of this name, or its volumes are open here.
    """
    present = next((one for one in desired.controllers() if one.name == controller.name), None)
    if present is None:
        return Change(create=(*volumes, controller))
    if differing := _differing(desired, present, controller, volumes):
        raise ConflictError(
            f"controller {present.name}: another one here: its {', '.join(differing)} differ from those where its "
            "guest is"
        )
    if not present.away:
        raise ConflictError(
            f"controller {present.name}: its volumes are open here already: no guest can arrive with them"
        )
    return None


def _differing(desired: Desired, present: Controller, controller: Controller, volumes: tuple[Volume, ...]) -> list[str]:
    """What a guest would see change, in words."""
    found = [field for field in _CONTROLLER if getattr(present, field) != getattr(controller, field)]
    here = [one for one in map(desired.get, present.depends_on) if isinstance(one, Volume)]
    numbers = [[namespace.nsid for namespace in one.namespaces] for one in (present, controller)]
    if numbers[0] != numbers[1]:
        return [*found, "namespaces"]
    pairs = list(zip(here, volumes, strict=True))
    for field in _VOLUME:
        found += [f"{field} of volume {a.name}" for a, b in pairs if getattr(a, field) != getattr(b, field)]
    return found


def forget(desired: Desired, name: str) -> Change:
    """The change by which a controller whose guest has left, or has not come, is forgotten with its volumes.

    :raises NotFoundError: there is no such controller.
    :raises ConflictError: its volumes are open here.
    """
    controller = desired.controller(name)
    if not controller.away:
        raise ConflictError(
            f"controller {name}: its volumes are open here; delete it with `nvmuser controller delete {name}`"
        )
    return Change(delete=(controller.key, *controller.depends_on), keep_files=True)
