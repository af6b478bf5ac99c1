"""Classes of protobuf's messages, made from tables by protobuf's runtime: no compiler, no generated code.

A member of a `oneof` is a plain field, which is the same on the wire; fields that a table leaves out are kept unread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

Tables = Mapping[str, Mapping[str, tuple[int, str]]]
"""Message → field → its number and its type: protobuf's or another message of the tables, after `repeated ` for many
of them; `map` is one from strings to strings."""

_FIELD = descriptor_pb2.FieldDescriptorProto
_ENTRY = {"key": (1, "string"), "value": (2, "string")}


def classes(package: str, tables: Tables) -> dict[str, Any]:
    """The class of each message, by its name.

    :param package: of the messages. They are in a pool of their own: stubs of the same names may be in this process.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"nvmuser/{package}.proto", package=package, syntax="proto3")
    for name, fields in tables.items():
        _describe(file.message_type.add(name=name), f".{package}", fields, tables)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    # Debian's protobuf, 3.21, knows it by an older name.
    made = getattr(message_factory, "GetMessageClass", None) or message_factory.MessageFactory(pool).GetPrototype
    return {name: made(pool.FindMessageTypeByName(f"{package}.{name}")) for name in tables}


def _describe(message: Any, scope: str, fields: Mapping[str, tuple[int, str]], tables: Tables) -> None:
    for name, (number, text) in fields.items():
        many, kind = text.startswith("repeated ") or text == "map", text.removeprefix("repeated ")
        label = _FIELD.LABEL_REPEATED if many else _FIELD.LABEL_OPTIONAL
        field = message.field.add(name=name, number=number, label=label)
        if kind == "map":  # as protoc has it: a nested message, named after the field
            entry = message.nested_type.add(name="".join(map(str.capitalize, name.split("_"))) + "Entry")
            entry.options.map_entry = True
            _describe(entry, scope, _ENTRY, tables)
            field.type, field.type_name = _FIELD.TYPE_MESSAGE, f"{scope}.{message.name}.{entry.name}"
        elif kind in tables:
            field.type, field.type_name = _FIELD.TYPE_MESSAGE, f"{scope}.{kind}"
        else:
            field.type = getattr(_FIELD, f"TYPE_{kind.upper()}")
