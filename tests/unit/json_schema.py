"""A validator of the part of JSON Schema that our schema uses. A keyword that it does not know is an error."""

from __future__ import annotations

import re
from typing import Any

_TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
_NOTES = {"$schema", "title", "default", "examples", "deprecated"}


def valid(data: Any, schema: dict[str, Any]) -> bool:
    """Does `data` conform?"""
    return all(key in _NOTES or _CHECKS[key](data, rule, schema) for key, rule in schema.items())


def _type(data: Any, rule: str | list[str], _schema: dict[str, Any]) -> bool:
    names = [rule] if isinstance(rule, str) else rule
    return any(isinstance(data, _TYPES[name]) and (name == "boolean" or not isinstance(data, bool)) for name in names)


def _properties(data: Any, rule: dict[str, Any], _schema: dict[str, Any]) -> bool:
    return all(key not in rule or valid(value, rule[key]) for key, value in data.items())


def _number(data: Any) -> bool:
    return isinstance(data, int) and not isinstance(data, bool)


_CHECKS: dict[str, Any] = {
    "type": _type,
    "const": lambda data, rule, _: data == rule,
    "enum": lambda data, rule, _: data in rule,
    "properties": _properties,
    "additionalProperties": lambda data, rule, schema: rule or not set(data) - set(schema["properties"]),
    "required": lambda data, rule, _: all(key in data for key in rule),
    "items": lambda data, rule, _: all(valid(item, rule) for item in data),
    "uniqueItems": lambda data, rule, _: len(set(data)) == len(data),
    "anyOf": lambda data, rule, _: any(valid(data, one) for one in rule),
    "oneOf": lambda data, rule, _: sum(valid(data, one) for one in rule) == 1,
    "not": lambda data, rule, _: not valid(data, rule),
    "pattern": lambda data, rule, _: not isinstance(data, str) or re.search(rule, data) is not None,
    "minLength": lambda data, rule, _: len(data) >= rule,
    "maxLength": lambda data, rule, _: len(data) <= rule,
    "minimum": lambda data, rule, _: not _number(data) or data >= rule,
    "maximum": lambda data, rule, _: data <= rule,
    "multipleOf": lambda data, rule, _: data % rule == 0,
}
