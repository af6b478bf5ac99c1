"""The JSON Schema of specifications, made from the model. Pure; `nvmuser.model.spec` reads the documents themselves."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from nvmuser.model.names import NAME
from nvmuser.model.objects import KINDS, TargetSettings
from nvmuser.model.sizes import SIZE, SIZE_FIELDS
from nvmuser.model.spec import NOT_FOR_PEOPLE, ONE, PLACED, SECTIONS
from nvmuser.model.where import FAILOVERS, RULES

_WHERE: dict[str, Any] = {
    "host": {"type": "string", "pattern": f"^({NAME})$"},
    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    "rule": {"type": "string", "enum": list(RULES)},
}
"""In which way a specification for a fleet says where something is (`nvmuser.model.where`)."""


def schema() -> dict[str, Any]:
    """The document's JSON Schema, for editors."""
    sections: dict[str, Any] = {"version": {"const": 1}, ONE: object_schema(TargetSettings)}
    del sections[ONE]["properties"]["name"]
    for section, kind in SECTIONS.items():
        item = object_schema(KINDS[kind], snapshots=section == "snapshots")
        item["properties"] |= _WHERE if kind in PLACED else {}
        item["properties"] |= {"failover": {"type": "string", "enum": list(FAILOVERS)}} if kind == "controller" else {}
        sections[section] = {"type": "array", "items": item}
    sections["targets"]["items"]["required"] = ["name"]
    del sections["targets"]["items"]["properties"]["name"]["default"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "nvmuser specification",
        "type": "object",
        "properties": sections,
        "additionalProperties": False,
    }


def object_schema(kind: Any, *, snapshots: bool = False) -> dict[str, Any]:
    """The JSON Schema of one object, as a person declares it."""
    hints = typing.get_type_hints(kind)
    properties: dict[str, Any] = {}
    required = []
    for field in dataclasses.fields(kind):
        if field.name in NOT_FOR_PEOPLE:
            continue
        name = "of" if snapshots and field.name == "snapshot_of" else field.name
        properties[name] = _value_schema(field.name, hints[field.name]) | _anchored(kind.rules.get(field.name, {}))
        if field.default is dataclasses.MISSING:
            required.append(name)
        elif field.default and isinstance(field.default, str | int):
            properties[name]["default"] = field.default
    required += ["of"] if snapshots else []
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    for old, new in getattr(kind, "renamed", {}).items():
        properties[old] = properties[new] | {"deprecated": True}
        if new in required:
            required.remove(new)
            schema["oneOf"] = [{"required": [new]}, {"required": [old]}]
        else:
            schema["not"] = {"required": [new, old]}
    return schema


def _anchored(rule: Mapping[str, Any]) -> dict[str, Any]:
    """The model's patterns are of the whole text; JSON Schema's are found anywhere in it."""
    return {key: f"^({value})$" if key == "pattern" else value for key, value in rule.items()}


def _value_schema(name: str, hint: Any) -> dict[str, Any]:
    if name in SIZE_FIELDS:
        return {
            "type": ["string", "integer"],
            "pattern": rf"^\s*{SIZE}\s*$",
            "minimum": 0,
            "examples": ["512M", "10G"],
        }
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        items = object_schema(item) if dataclasses.is_dataclass(item) else _value_schema("", item)
        return {"type": "array", "items": {"anyOf": [{"type": "string"}, items]} if name == "namespaces" else items}
    if dataclasses.is_dataclass(hint):
        return object_schema(hint)
    return {"type": {str: "string", int: "integer", bool: "boolean"}[hint]}
