"""A guest's specification as its record keeps it, and the same guest again where its controllers are others' paths.

Pure. Controllers are known by their names: sockets and device directories are each host's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvmuser.errors import GuestError
from nvmuser.guest.spec import GuestSpec

_PLAIN = ("cpus", "memory", "hugepages", "firmware", "suite", "append", "spare_ports")


def to_json(spec: GuestSpec) -> dict[str, Any]:
    """What a guest that is the same one elsewhere has to have."""
    return {field: getattr(spec, field) for field in _PLAIN} | {
        "controllers": [socket.parent.name for socket in spec.sockets],
        "image": str(spec.image) if spec.image else "",
        "boot_from": spec.boot_from.parent.name if spec.boot_from else "",
        "memory_file": str(spec.memory_file) if spec.memory_file else "",
        "qemu_args": list(spec.qemu_args),
    }


def from_json(
    data: Mapping[str, Any], sockets: Mapping[str, Path], directories: Mapping[str, Path], machine_type: str = "q35"
) -> GuestSpec:
    """The specification at another host, with libvfio.

    :param sockets: of the controllers there, by their names; `directories` stand for them.
    :param machine_type: that it has where it is.
    :raises GuestError: the record is of an nvmuser that did not keep it.
    """
    try:
        names = [str(name) for name in data["controllers"]]
        return GuestSpec(
            sockets=tuple(sockets[name] for name in names),
            directories=tuple(directories[name] for name in names),
            image=Path(data["image"]) if data["image"] else None,
            boot_from=sockets[data["boot_from"]] if data["boot_from"] else None,
            qemu_args=tuple(data["qemu_args"]),
            # A record of an earlier version has none.
            memory_file=Path(data["memory_file"]) if data.get("memory_file") else None,
            machine_type=machine_type,
            **{field: data[field] for field in _PLAIN},
        )
    except KeyError as error:
        raise GuestError(
            f"the guest's record lacks {error}: it was started by an nvmuser that could not move it; start it again"
        ) from error
