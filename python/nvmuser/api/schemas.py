"""JSON Schemas of what the API takes and answers, made from the model, as that of specifications is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvmuser.model.names import NAME
from nvmuser.model.objects import KINDS
from nvmuser.model.sizes import SIZE_FIELDS
from nvmuser.model.spec import NOT_FOR_PEOPLE, SECTIONS
from nvmuser.model.spec_schema import object_schema
from nvmuser.store.credentials import EVENTS, ROLES

STATES = ("in-sync", "drifted", "missing", "pending", "unknown")
"""How an object fares: as it should be; there, and not so; not there; waiting for a target; not looked at yet."""

Schema = Mapping[str, Any]

_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer"}
_OBJECT: Schema = {"type": "object"}
LIFETIME_MAX_S = 10**14
"""Of a credential."""
_CREDENTIAL: Mapping[str, Schema] = {
    "name": _TEXT, "role": {"enum": list(ROLES)}, "kind": {"enum": ["token", "certificate"]}, "created": _NUMBER,
    "expires": {"anyOf": [_NUMBER, {"type": "null"}]}, "expired": {"type": "boolean"},
}  # fmt: skip
DELETED: Schema = {
    "type": "object", "properties": {"deleted": _TEXT, "dry_run": {"const": True}, "calls": {"type": "array"}},
}  # fmt: skip


def ref(name: str, form: str = "") -> Schema:
    """A schema of the document.

    :param form: of an object: spec (as it is declared), patch, shown (in answers).
    """
    return {"$ref": f"#/components/schemas/{name}{f'.{form}' if form else ''}"}


def page(item: Schema) -> Schema:
    """A page of a list; `next` goes into `after` of the request for the next one."""
    return _closed({"items": {"type": "array", "items": item}, "next": _nullable(_TEXT)})


def _closed(properties: Mapping[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required, "additionalProperties": False}


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def components() -> dict[str, Schema]:
    """All that are referred to, by name."""
    found: dict[str, Schema] = {}
    for section, kind in SECTIONS.items():
        name = section.removesuffix("s")
        spec = object_schema(KINDS[kind], snapshots=section == "snapshots")
        if section == "snapshots":
            # What it is of says the rest.
            spec["required"] = ["name", "of"]
        elif section == "targets":
            spec["required"] = ["name"]
        found[f"{name}.spec"] = spec
        found[f"{name}.patch"] = _patch(spec)
        found[f"{name}.shown"] = _shown(kind, section)
    return found | _others()


def _patch(spec: Mapping[str, Any]) -> Schema:
    """Every field may be left out; null takes it back to its default."""
    properties = {name: _nullable(schema) for name, schema in spec["properties"].items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _shown(kind: str, section: str) -> Schema:
    declared = object_schema(KINDS[kind], snapshots=section == "snapshots")
    properties = {
        name: _COUNT if name in SIZE_FIELDS else schema
        for name, schema in declared["properties"].items()
        if not schema.get("deprecated") and name not in NOT_FOR_PEOPLE
    }
    spec = {"type": "object", "properties": properties, "required": ["name"], "additionalProperties": False}
    if section == "targets":
        spec["required"] = []
    used_by = {"type": "array", "items": _TEXT, "description": "What lies on it or shows it."}
    state = {"type": "object", "properties": {"state": {"enum": list(STATES)}, "used_by": used_by}}
    whole = _closed({"spec": spec, "status": {**state, "required": ["state", "used_by"]}, "revision": _TEXT})
    return {"anyOf": [whole, ref("plan")]}


def _others() -> dict[str, Schema]:
    # What `nvmuser status --json`, and JSON of the command line in general, may get more of.
    problem = _closed(
        {"type": _TEXT, "title": _TEXT, "status": _COUNT, "code": _TEXT, "detail": _TEXT, "pointer": _TEXT},
        optional=("pointer",),
    )
    event = {
        "id": _COUNT, "time": _NUMBER, "who": _TEXT, "source": _TEXT,
        "action": {"enum": ["create", "update", "delete", "restore", "gone"]},
        "kind": {"enum": [*KINDS, EVENTS]}, "name": _TEXT, "before": _nullable(_OBJECT), "after": _nullable(_OBJECT),
    }  # fmt: skip
    call = {"type": "object", "properties": {"method": _TEXT, "params": _OBJECT}, "required": ["method", "params"]}
    waves = {"type": "array", "items": {"type": "array", "items": call}, "description": "Waves of calls to SPDK."}
    return {
        "problem": problem,
        "event": _closed(event),
        "plan": _closed({"dry_run": {"const": True}, "calls": waves}),
        "operation": _operation(),
        "change": _change(),
        "principal": _closed({"name": _TEXT, "role": {"enum": list(ROLES)}, "source": _TEXT}),
        "token": _closed({**_CREDENTIAL, "token": _TEXT}, optional=("token",)),
        "token.spec": _closed(
            {"name": {"type": "string", "pattern": f"^({NAME})$"}, "role": _CREDENTIAL["role"],
             "lifetime_s": {"type": "integer", "minimum": 0, "maximum": LIFETIME_MAX_S}, "certificate": _TEXT},
            optional=("role", "lifetime_s", "certificate"),
        ),
        "outcome": _closed(
            {"changed": {"type": "array", "items": _TEXT}, "calls": _COUNT, "pending": {"type": "boolean"},
             "problems": {"type": "array", "items": _OBJECT}}
        ),
        "statistics": _closed({"volume": _TEXT, "read": _OBJECT, "write": _OBJECT, "unmap": _OBJECT}),
        "reactor": _closed({"target": _TEXT, "core": _COUNT, "busy_s": _NUMBER, "idle_s": _NUMBER}),
        "guest": _closed(
            {"name": _TEXT, "pid": _COUNT, "running": {"type": "boolean"}, "cpus": _COUNT, "memory": _COUNT,
             "controllers": {"type": "array", "items": _TEXT}}
        ),
        "host": _closed(
            {"name": _TEXT, "live": {"type": "boolean"}, "cordoned": {"type": "boolean"}, "labels": _OBJECT,
             "controllers": _COUNT, "volumes": _COUNT, "pending": {"type": "boolean"}, "problems": _OBJECT,
             "more_problems": _COUNT, "version": _TEXT}
        ),
    }  # fmt: skip


def _change() -> Schema:
    objects: Schema = {"type": "array", "items": {"type": "object", "required": ["kind"]}}
    keys: Schema = {"type": "array", "items": {"type": "string", "pattern": "^(" + "|".join(KINDS) + ")/"}}
    flags: dict[str, Schema] = {name: {"type": "boolean"} for name in ("wipe", "keep_files", "force")}
    properties = {"create": objects, "update": objects, "expect": objects, "delete": keys, **flags}
    return _closed(properties, optional=tuple(properties))


def _operation() -> Schema:
    return _closed(
        {
            "id": _COUNT, "what": _TEXT, "who": _TEXT, "state": {"enum": ["running", "done", "failed"]},
            "began": _NUMBER, "ended": _nullable(_NUMBER),
            "progress": _closed({"done": _COUNT, "total": _COUNT}), "result": {},
            "problem": _nullable(ref("problem")),
        }
    )  # fmt: skip
