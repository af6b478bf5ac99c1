"""What is kept in etcd, each as JSON of at most 4 KiB: what a fleet is, its hosts, what is wanted, who owns what, what
hosts report.

Owns the form. Fields that a newer version writes are refused by name, so that no host carries out half of something.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Self

from nvmuser.errors import FleetError, NvmuserError, UsageError
from nvmuser.model.names import check_name
from nvmuser.model.objects import AnyObject, Controller, Volume, object_from_json

SHARED = ("remote", "cluster")
"""Kinds of what many hosts reach: each is on every host that has something of it, and on none by itself."""
KINDS = ("volume", "pool", "controller", *SHARED)
"""What a fleet declares. How targets are run, each host decides for itself."""
MAX_BYTES = 4096
REPORTED = 20
"""Problems of one host that are reported; of more, how many there are."""


def encode(what: str, data: Mapping[str, Any]) -> bytes:
    """:raises UsageError: it is too large for the store that all hosts share."""
    raw = json.dumps(data, separators=(",", ":"), sort_keys=True).encode()
    if len(raw) > MAX_BYTES:
        raise UsageError(f"{what}: {len(raw)} bytes in a fleet's store, at most {MAX_BYTES}: declare less of it")
    return raw


def decode(key: str, raw: bytes) -> dict[str, Any]:
    """:raises FleetError: it is no JSON object."""
    try:
        found = json.loads(raw.decode())  # of bytes it would look for their encoding first
    except ValueError as error:
        raise FleetError(f"{key}: damaged in etcd: {error}") from error
    if not isinstance(found, dict):
        raise FleetError(f"{key}: damaged in etcd: not an object")
    return found


class Record:
    """A dataclass that is JSON both ways, without what has its default."""

    def to_json(self) -> dict[str, Any]:
        values = {one.name: (getattr(self, one.name), one.default) for one in fields(self)}  # type: ignore[arg-type]
        return {name: _plain(value) for name, (value, default) in values.items() if value != default and value != {}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """:raises FleetError: it is of a newer version, or damaged."""
        known = {one.name for one in fields(cls)}  # type: ignore[arg-type]
        if unknown := set(data) - known:
            raise FleetError(f"field {min(unknown)!r} in etcd: of a newer nvmuser; upgrade this host")
        try:
            return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()})
        except (TypeError, NvmuserError) as error:
            raise FleetError(f"damaged in etcd: {error}") from error


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Fleet(Record):
    """What a fleet is."""

    id: str
    """A UUID, made once."""
    created: float


@dataclass(frozen=True)
class Host(Record):
    """A host of a fleet."""

    name: str
    id: str
    """Of the installation (`hostfs.host_identity`): another one of the same name is not let in."""
    labels: Mapping[str, str] = field(default_factory=dict)
    cordoned: bool = False
    """Nothing new is placed on it."""

    def __post_init__(self) -> None:
        check_name("host", self.name)


@dataclass(frozen=True)
class Quota(Record):
    """What a tenant may have, or has; of a limit, 0 is none.

    :param bytes: the sizes of its volumes together, as far as they are declared.
    :param iops: the sum of what its volumes are limited to.
    """

    volumes: int = 0
    bytes: int = 0
    iops: int = 0


@dataclass(frozen=True)
class Declared:
    """An object that is wanted.

    :param host: where it is; empty: wherever something that lies on it is (a remote).
    :param deleting: the host still has to take it away; then it removes the record.
    :param wipe, keep_files, force: as of the change that alters or deletes it.
    :param failover: auto: it goes to another host when its own has died, without a person's word.
    :param seize: epoch of the owner from which a volume is taken by a fence, and not asked for; 0: none.
    """

    spec: Mapping[str, Any]
    host: str = ""
    deleting: bool = False
    wipe: bool = False
    keep_files: bool = False
    force: bool = False
    failover: str = ""
    seize: int = 0

    @classmethod
    def of(cls, one: AnyObject, host: str) -> Self:
        return cls(one.to_json(), host)

    @cached_property
    def object(self) -> AnyObject:
        """:raises UsageError: this version does not know it."""
        return object_from_json(self.spec)

    def with_object(self, one: AnyObject) -> Self:
        """The same record of a changed object."""
        return replace(self, spec=one.to_json())

    def to_json(self) -> dict[str, Any]:
        optional = ("host", "deleting", "wipe", "keep_files", "force", "failover", "seize")
        return {"spec": self.spec, **{name: value for name in optional if (value := getattr(self, name))}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """:raises FleetError: it is of a newer version, or damaged."""
        try:
            return cls(**data)
        except TypeError as error:
            raise FleetError(f"an object in etcd is of a newer nvmuser, or damaged: {error}") from error


_PLACE = re.compile(rb'\{("deleting":true,)?(?:"failover":"auto",)?(?:"force":true,)?"host":"([^"]+)"')
"""How a record begins, as `encode` writes it."""


@functools.lru_cache(maxsize=4096)
def _elsewhere(host: str, deleting: bool) -> Declared:
    return Declared({}, host, deleting)


def declared_elsewhere(raw: bytes, host: str) -> Declared | None:
    """Of another host's object only where it is: a host has to look at each of them, and need not read them. None where
    it is this host's, or cannot be told so easily."""
    if (found := _PLACE.match(raw)) is None or (other := found[2].decode()) == host:
        return None
    return _elsewhere(other, found[1] is not None)


@dataclass(frozen=True)
class Owner(Record):
    """Who may have a volume open. It outlives its owner: there is no lease.

    :param epoch: grows with each owner; what bears a smaller one is not written any more.
    :param state: claimed (may be open), open, free (given up).
    :param fences: by which its openers can be shut out, each its kind, host, and address or identifier; recorded before
        it opens. While a host takes it from another, there are those of both.
    :param made: the fleet made the image, so that deleting the volume deletes it.
    """

    volume: str
    host: str
    epoch: int
    state: str = "claimed"
    fences: tuple[Mapping[str, str], ...] = ()
    made: bool = False


@dataclass(frozen=True)
class Report(Record):
    """What a host says of itself.

    :param revision: everything up to it is carried out, or among the problems.
    :param pending: no target runs there: it takes effect when one starts.
    :param problems: key of an object → what is wrong with it; an empty key: with the host.
    :param more: how many further problems there are.
    """

    revision: int
    pending: bool = False
    problems: Mapping[str, str] = field(default_factory=dict)
    more: int = 0
    version: str = ""

    @classmethod
    def of(cls, revision: int, problems: Mapping[str, str], *, pending: bool, version: str) -> Self:
        """With as many problems as there is room for."""
        shown, room = dict[str, str](), MAX_BYTES // 2
        for key, text in list(problems.items())[:REPORTED]:
            shown[key] = text[:500]
            room -= len(json.dumps({key: shown[key]}))
            if room < 0:
                del shown[key]
                break
        return cls(revision, pending, shown, len(problems) - len(shown), version)


def as_recorded(one: AnyObject, record: AnyObject | None = None) -> AnyObject:
    """An object of a host's own store without what only that machine has completed, or records by itself.

    :param record: how it is in etcd, where it is; a declaration that left a field out goes on to leave it out.
    """
    if not isinstance(one, Volume):
        return replace(one, away=False) if isinstance(one, Controller) else one
    one = replace(one, stale=())
    if isinstance(record, Volume):
        path, image = one.path if record.path else "", one.image if record.image else ""
        return replace(one, path=path, image=image, owned=record.owned, size=one.size if record.size else 0)
    return one
