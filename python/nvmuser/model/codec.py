"""Frozen dataclasses to plain JSON and back, checked. Owns the form only: what a value means is the class's
own."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nvmuser.errors import UsageError


def compact(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        one = getattr(value, field.name)
        if one == field.default:
            continue
        if dataclasses.is_dataclass(one):
            one = compact(one)
        elif isinstance(one, tuple):
            one = [compact(item) if dataclasses.is_dataclass(item) else item for item in one]
        found[field.name] = one
    return found


class FieldError(UsageError):
    """A field that is unknown, missing or of the wrong type. `path` leads to it: `namespaces`, 0,
    `volume`."""

    def __init__(self, where: str, path: tuple[str | int, ...], reason: str) -> None:
        self.path = path
        self.reason = reason
        steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
        super().__init__(f"{where}{steps}: {reason}")


def build(kind: Any, data: Any, where: str, path: tuple[str | int, ...] = ()) -> Any:
    """An instance of dataclass `kind`.

    :raises FieldError: unknown or missing field, or a wrong type.
    """
    if not isinstance(data, Mapping):
        raise FieldError(where, path, f"expected a mapping, got {data!r}")
    shapes = _shapes(kind)
    if (renamed := getattr(kind, "renamed", None)) and not renamed.keys().isdisjoint(data):
        data = _by_present_names(data, renamed, where, path)
    values: dict[str, Any] = {}
    for key, value in data.items():
        shape = shapes.get(key)
        if shape is None:
            raise FieldError(where, path, f"unknown field {key!r}; known are {', '.join(shapes)}")
        # Thousands of objects are read at once: most fields are plain.
        values[key] = value if shape.plain and type(value) is shape.kind else _value(shape, value, where, (*path, key))
    if missing := [name for name in _required(kind) if name not in data]:
        raise FieldError(where, path, f"missing {', '.join(missing)}")
    return kind(**values)


def _by_present_names(
    data: Mapping[str, Any], renamed: Mapping[str, str], where: str, path: tuple[str | int, ...]
) -> dict[str, Any]:
    """:param renamed: present names of fields by earlier ones."""
    if twice := [key for key in renamed if key in data and renamed[key] in data]:
        raise FieldError(where, path, f"{twice[0]} is an earlier name of {renamed[twice[0]]}: leave it out")
    return {renamed.get(key, key): value for key, value in data.items()}


def _value(shape: _Shape, value: Any, where: str, path: tuple[str | int, ...]) -> Any:
    if shape.many:
        if not isinstance(value, list | tuple):
            raise FieldError(where, path, f"expected a list, got {value!r}")
        return tuple(_one(shape, item, where, (*path, index)) for index, item in enumerate(value))
    return _one(shape, value, where, path)


def _one(shape: _Shape, value: Any, where: str, path: tuple[str | int, ...]) -> Any:
    if shape.nested:
        return build(shape.kind, value, where, path)
    if type(value) is not shape.kind:
        raise FieldError(where, path, f"expected {shape.kind.__name__}, got {value!r}")
    return value


@dataclass(frozen=True)
class _Shape:
    """What a field takes: one or many of a kind, which may be a dataclass itself."""

    kind: Any
    many: bool
    nested: bool
    required: bool

    @functools.cached_property
    def plain(self) -> bool:
        """One, and no dataclass."""
        return not (self.many or self.nested)


@functools.cache
def _required(kind: Any) -> tuple[str, ...]:
    return tuple(name for name, shape in _shapes(kind).items() if shape.required)


_SHAPES: dict[Any, dict[str, _Shape]] = {}


def _shapes(kind: Any) -> dict[str, _Shape]:
    if kind not in _SHAPES:
        hints = typing.get_type_hints(kind)
        shapes: dict[str, _Shape] = {}
        for field in dataclasses.fields(kind):
            hint = hints[field.name]
            many = typing.get_origin(hint) is tuple
            one = typing.get_args(hint)[0] if many else hint
            required = field.default is dataclasses.MISSING
            shapes[field.name] = _Shape(one, many, dataclasses.is_dataclass(one), required)
        _SHAPES[kind] = shapes
    return _SHAPES[kind]
