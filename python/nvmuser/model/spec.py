"""The file that declares everything at once: read with positions, compared, written.

Owns the document's shape (YAML, of which JSON is a part) and the way from it to a `Change`. What objects are
is the model's. An error names the place: `spec.yaml:12: volumes[3].size: …`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from nvmuser.errors import NvmuserError, UsageError
from nvmuser.model import extent
from nvmuser.model.change import Change
from nvmuser.model.codec import FieldError
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, Controller, TargetSettings, Volume, object_from_json
from nvmuser.model.sizes import SIZE_FIELDS, format_size, parse_size
from nvmuser.model.where import FIELDS, Where
from nvmuser.paths import DEFAULT_TARGET

SECTIONS = {
    "targets": "target",
    "pools": "pool",
    "volumes": "volume",
    "snapshots": "volume",
    "remotes": "remote",
    "clusters": "cluster",
    "controllers": "controller",
}
ONE = "target"
"""The section that is no list: the default target."""
_DEEPEST = 8
"""Nothing valid is deeper; an alias can be endless."""
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
PLACED = ("pool", "volume", "controller")
"""Kinds of which a specification for a fleet may say on which host they are."""
NOT_FOR_PEOPLE = ("owned", "stale", "away")
_BOOLEANS = frozenset(
    spelling
    for word in ("yes", "no", "true", "false", "on", "off")
    for spelling in (word, word.capitalize(), word.upper())
)
_INT, _BOOL, _STR = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "bool", "str"))
_PLAIN = "plain"
"""Of words without a tag and without quotes: what they are is looked at where they are values."""

Path = tuple[str | int, ...]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's, without what it would do for each of thousands of nodes: try all of YAML's kinds of words, and look
    where in the document it is."""

    def resolve(self, kind: type[yaml.Node], value: str, implicit: Any) -> str:
        """The tag of a node that has none."""
        return _PLAIN if kind is yaml.ScalarNode and implicit[0] else _STR

    def descend_resolver(self, parent: yaml.Node, index: Any) -> None:
        pass

    def ascend_resolver(self) -> None:
        pass


@dataclass(frozen=True)
class Spec:
    """What a file declares, and where in it each object stands."""

    objects: tuple[AnyObject, ...]
    places: Mapping[Key, str]
    """Key of an object → `spec.yaml:12: volumes[3]`."""
    sizes: Mapping[Key, str]
    """Key of an object → its size as it is written."""
    wheres: Mapping[Key, Where] = dataclasses.field(default_factory=dict)
    """Key of an object → on which host of a fleet it is to be, where that is said."""

    def explain(self, error: NvmuserError) -> NvmuserError:
        """The error with the place of the object that it is about, if it is in the file."""
        subject = str(error).split(":", 1)[0]
        kind, _, name = subject.partition(" ")
        place = self.places.get(TargetSettings().key if subject == ONE else Key(kind, name))
        reason = str(error).removeprefix(f"{ONE}: ")
        return type(error)(f"{place}: {reason}") if place and type(error).__init__ is Exception.__init__ else error


def parse(text: str, source: str) -> Spec:
    """:raises UsageError: it is not a specification; the message has the place and the reason."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{source}:{line}: {error.problem or error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{source}: {error}") from error
    reader = _Reader(source)
    objects = list(reader.objects(root)) if root is not None else []
    return Spec(tuple(objects), reader.places, reader.sizes, reader.wheres)


class _Reader:
    """From nodes to objects; nodes know where they stand."""

    def __init__(self, source: str) -> None:
        self._source = source
        self.places: dict[Key, str] = {}
        self.sizes: dict[Key, str] = {}
        self.wheres: dict[Key, Where] = {}

    def objects(self, root: yaml.Node) -> Iterator[AnyObject]:
        for key, section in self._pairs(root, ()):
            if key == "version":
                if self._plain(section, (key,)) != 1:
                    raise self._error(section, (key,), "this nvmuser knows version 1")
            elif key == ONE:
                yield self._object(key, ONE, (key,), section)
            elif key not in SECTIONS:
                raise self._error(section, (key,), f"unknown section; known are version, {ONE}, {', '.join(SECTIONS)}")
            elif not isinstance(section, yaml.SequenceNode):
                raise self._error(section, (key,), "expected a list")
            else:
                for index, node in enumerate(section.value):
                    yield self._object(key, SECTIONS[key], (key, index), node)

    def _object(self, section: str, kind: str, path: Path, node: yaml.Node) -> AnyObject:
        data = self._plain(node, path)
        if not isinstance(data, dict):
            raise self._error(node, path, "expected a mapping")
        self._check_target(section, data, path, node)
        for field in NOT_FOR_PEOPLE:
            if field in data:
                raise self._error(_at(node, (field,)), (*path, field), "not for a specification")
        fields = FIELDS if kind == "controller" else FIELDS[:-1]
        where = {name: data.pop(name) for name in fields if name in data and kind in PLACED}
        try:
            placed = Where.from_plain(where)
            one = object_from_json({"kind": kind} | long_form(section, data))
            one.check_declared()
        except FieldError as error:
            raise self._error(_at(node, error.path), (*path, *error.path), error.reason) from error
        except UsageError as error:
            raise self._error(node, path, str(error)) from error
        if one.key in self.places:
            raise self._error(node, path, f"{kind} {one.name}: declared already at {self.places[one.key]}")
        self.places[one.key] = f"{self._source}:{node.start_mark.line + 1}: {_text(path)}"
        if where:
            self.wheres[one.key] = placed
        if "size" in data:
            self.sizes[one.key] = _at(node, ("size",)).value
        return one

    def _check_target(self, section: str, data: dict[str, Any], path: Path, node: yaml.Node) -> None:
        """The default target has no need of a name, and others need one."""
        if section == ONE and data.get("name", DEFAULT_TARGET) != DEFAULT_TARGET:
            raise self._error(_at(node, ("name",)), (*path, "name"), "targets with a name are listed under `targets:`")
        if section == "targets" and "name" not in data:
            raise self._error(node, path, "missing name")

    def _plain(self, node: yaml.Node, path: Path) -> Any:
        """Plain data; sizes in bytes."""
        if len(path) > _DEEPEST:
            raise self._error(node, path[:3], "too deep")
        if isinstance(node, yaml.MappingNode):
            return {
                key: _scalar(value)
                if isinstance(value, yaml.ScalarNode) and key not in SIZE_FIELDS
                else self._plain(value, (*path, key))
                for key, value in self._pairs(node, path)
            }
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, (*path, index)) for index, item in enumerate(node.value)]
        if path and path[-1] in SIZE_FIELDS:
            try:
                return parse_size(node.value)
            except UsageError as error:
                raise self._error(node, path, str(error)) from error
        return _scalar(node)

    def _pairs(self, node: yaml.Node, path: Path) -> Iterator[tuple[str, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, path, "expected a mapping")
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, path, "expected the name of a field")
            if key.value in seen:
                raise self._error(key, (*path, key.value), "given twice")
            seen.add(key.value)
            yield key.value, value

    def _error(self, node: yaml.Node, path: Path, reason: str) -> UsageError:
        where = f"{_text(path)}: " if path else ""
        return UsageError(f"{self._source}:{node.start_mark.line + 1}: {where}{reason}")


def _scalar(node: yaml.Node) -> Any:
    """Strings, decimal numbers and booleans. YAML's other numbers (017, 1:30) and its dates are strings."""
    tag, value = node.tag, node.value
    if tag in (_PLAIN, _BOOL) and (tag == _BOOL or value in _BOOLEANS):
        return value.lower() in ("true", "yes", "on")
    return int(value) if tag in (_PLAIN, _INT) and _INTEGER.fullmatch(value) else value


def long_form(section: str, data: dict[str, Any]) -> dict[str, Any]:
    """What may be written shorter: namespaces as names of volumes, snapshots by what they are of."""
    if section == "controllers" and isinstance(shown := data.get("namespaces"), list):
        data = data | {"namespaces": [{"volume": one} if isinstance(one, str) else one for one in shown]}
    if section == "snapshots":
        data = {"backend": "lvol"} | {("snapshot_of" if key == "of" else key): value for key, value in data.items()}
    return data


def _at(node: yaml.Node, path: Path) -> yaml.Node:
    """The node that `path` leads to, or the last one on the way that is there."""
    for step in path:
        if isinstance(node, yaml.MappingNode):
            found = next((value for key, value in node.value if key.value == step), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            found = node.value[step]
        else:
            found = None
        if found is None:
            return node
        node = found
    return node


def _text(path: Path) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def difference(desired: Desired, spec: Spec, *, prune: bool, wipe: bool) -> Change:
    """The change that makes `spec` true. With `prune`, what it does not name goes."""
    named = {declared.key: declared for declared in spec.objects}
    create: list[AnyObject] = []
    update: list[AnyObject] = []
    expect: list[AnyObject] = []
    find = {**{key: entry.object for key, entry in desired.entries.items()}, **named}.get
    for declared in spec.objects:
        entry = desired.entries.get(declared.key)
        if entry is None or entry.deleting:
            create.append(declared)
        elif (whole := merged(entry.object, declared, find)) != entry.object:
            update.append(whole)
            expect.append(entry.object)
    # The default target is always there.
    stays = {*named, TargetSettings().key}
    delete = [wanted.key for wanted in desired.wanted() if wanted.key not in stays] if prune else []
    return Change(tuple(create), tuple(update), tuple(delete), wipe, tuple(expect))


def forced(change: Change) -> Change:
    """Also when a guest that runs loses what it uses."""
    return replace(change, force=True)


def merged(present: AnyObject, one: AnyObject, find: extent.Find) -> AnyObject:
    """`one`, completed from `present` where a person may leave a field out."""
    keep = [field for field in present.identity if not getattr(one, field)]
    keep += [field for field in NOT_FOR_PEOPLE if hasattr(one, field)]
    if isinstance(one, Volume):
        keep += [field for field in ("path", "size", "image") if not getattr(one, field)]
        keep += ["size"] if isinstance(present, Volume) and extent.rounded(one, find).size == present.size else []
    kept = {field: value for field in keep if (value := getattr(present, field)) != getattr(one, field)}
    whole: AnyObject = replace(one, **kept) if kept else one
    if isinstance(whole, Controller) and isinstance(present, Controller):
        numbers = {ns.volume: ns.nsid for ns in present.namespaces}
        taken = {ns.nsid for ns in whole.namespaces}
        shown = []
        for ns in whole.namespaces:
            number = ns.nsid or numbers.get(ns.volume, 0)
            shown.append(ns if ns.nsid else replace(ns, nsid=0 if number in taken else number))
        shown.sort(key=lambda ns: (ns.nsid == 0, ns.nsid))
        whole = whole if whole.namespaces == tuple(shown) else replace(whole, namespaces=tuple(shown))
    return whole


def export(desired: Desired, volumes: str = "", *, texts: bool = True) -> dict[str, Any]:
    """The document that declares what is wanted now, identities included: applying it changes nothing.

    :param volumes: the directory of files that nobody has given a path; they are made wherever it is applied.
    :param texts: sizes as `3G`, else in bytes.
    """
    document: dict[str, Any] = {"version": 1}
    if settings := desired.entries.get(TargetSettings().key):
        document[ONE] = written(settings.object, volumes, texts)
    for section, kind in SECTIONS.items():
        found = [
            written(wanted, volumes, texts)
            for wanted in desired.wanted()
            if wanted.kind == kind
            and wanted.key != TargetSettings().key
            and (section == "snapshots") == (isinstance(wanted, Volume) and bool(wanted.snapshot_of))
        ]
        if found:
            document[section] = found
    return document


def written(one: AnyObject, volumes: str = "", texts: bool = False) -> dict[str, Any]:
    """One object as a specification has it; the parameters are those of `export`."""
    data = {key: value for key, value in one.to_json().items() if key not in ("kind", *NOT_FOR_PEOPLE)}
    for field in SIZE_FIELDS:
        if texts and field in data:
            data[field] = format_size(data[field])
    if isinstance(one, Volume):
        if one.owned and one.path == f"{volumes}/{one.in_spdk}":
            del data["path"]
        if one.snapshot_of:
            data["of"] = data.pop("snapshot_of")
            data.pop("size", None)  # what it is of may have grown since
            if one.backend == "lvol":
                del data["backend"]
    return data


def dump(document: Mapping[str, Any]) -> str:
    """As YAML, in the order given."""
    return str(yaml.dump(dict(document), Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False))
