"""CSI's volumes as volumes of nvmuser: their names, sizes and parameters. Pure: nothing is sent here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from nvmuser.csi.messages import SINGLE_NODE_SINGLE_WRITER, SINGLE_NODE_WRITER
from nvmuser.csi.refusal import Refused, demand

PREFIX = "csi-"
"""Of the names of volumes that are CSI's. No others are listed, shown or deleted."""
DEFAULT_BYTES = 1 << 30
_STEP = 1 << 20
_NAME = re.compile(r"[a-z0-9._-]{1,59}")
_OF_KUBERNETES = "csi.storage.k8s.io/"
_OF_THE_VOLUME = ("backend", "pool")
_OF_ITS_CONTROLLER = ("owner", "group")
THIN = "thin"


def volume_name(name: str) -> str:
    """The volume of this name of CSI's; of a digest where nvmuser's rule for names does not allow it."""
    demand(name, "name")
    fits = _NAME.fullmatch(name) is not None
    return PREFIX + (name if fits else hashlib.sha256(name.encode()).hexdigest()[:40])


def is_ours(volume_id: str) -> bool:
    """Whether it can be a volume of CSI's at all."""
    return volume_id.startswith(PREFIX) and _NAME.fullmatch(volume_id.removeprefix(PREFIX)) is not None


def size_of(capacity: Any, *, default: int = DEFAULT_BYTES) -> int:
    """Bytes to make for a `CapacityRange`.

    :raises Refused: no size is in it.
    """
    required, limit = capacity.required_bytes, capacity.limit_bytes
    if required < 0 or limit < 0 or (limit and required > limit):
        raise Refused("INVALID_ARGUMENT", f"capacity_range: {required} to {limit} bytes is no range")
    wanted = required or min(default, limit or default)
    size = max(-(-wanted // _STEP) * _STEP, _STEP)
    if limit and size > limit:
        raise Refused("OUT_OF_RANGE", f"capacity_range: sizes are multiples of {_STEP} bytes, and none is in it")
    return size


def is_in_range(size: int, capacity: Any) -> bool:
    """Whether a volume of this size is one that was asked for."""
    return capacity.required_bytes <= size and (not capacity.limit_bytes or size <= capacity.limit_bytes)


def parameters_of(parameters: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Fields of the volume, and what is kept for its controller, of a storage class's parameters.

    :raises Refused: one is unknown.
    """
    own = {key: text for key, text in parameters.items() if not key.startswith(_OF_KUBERNETES)}
    unknown = sorted(own.keys() - {*_OF_THE_VOLUME, *_OF_ITS_CONTROLLER, THIN})
    if unknown or own.get(THIN, "false") not in ("true", "false"):
        raise Refused("INVALID_ARGUMENT", f"parameters: {', '.join(unknown) or THIN}: known are backend, pool, "
                      "thin (true or false), owner, group")  # fmt: skip
    fields: dict[str, Any] = {key: own[key] for key in _OF_THE_VOLUME if key in own}
    if THIN in own:
        fields[THIN] = own[THIN] == "true"
    return fields, {key: own[key] for key in _OF_ITS_CONTROLLER if key in own}


def fault_of(capabilities: Iterable[Any]) -> str:
    """Why volumes here cannot be used so; empty: they can."""
    for capability in capabilities:
        if capability.access_mode.mode not in (SINGLE_NODE_WRITER, SINGLE_NODE_SINGLE_WRITER):
            return "access_mode: a controller serves one guest, which writes: only SINGLE_NODE_WRITER is possible"
        if capability.HasField("mount") and capability.mount.fs_type:
            return "fs_type: nvmuser makes no file systems; the guest does"
    return ""
