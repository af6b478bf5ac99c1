"""On which host what is new comes to be. Pure. Once chosen, it stays there until somebody moves it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nvmuser.errors import ConflictError, NotFoundError, UsageError
from nvmuser.fleet.groups import grouped
from nvmuser.fleet.records import SHARED
from nvmuser.fleet.view import View, counted
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject
from nvmuser.model.where import Where


def place(
    view: View,
    new: Mapping[Key, AnyObject],
    updated: Mapping[Key, AnyObject],
    wheres: Mapping[Key, Where],
    default: str,
) -> dict[Key, str]:
    """Host of each new object; empty for what many hosts reach.

    :param updated: objects that are there, as they will be.
    :param default: the host of what says nothing, and lies on nothing that does; empty: any, spread.
    :raises NotFoundError: there is no such host. :raises ConflictError: a host is cordoned, or two are asked for.
    """
    after = {**updated, **new}
    tops = grouped({key: one.depends_on for key, one in after.items()})
    groups: dict[Key, list[Key]] = {}
    for key, top in tops.items():
        groups.setdefault(top, []).append(key)
    counts, found = dict(counted(view)), dict[Key, str]()
    for members in groups.values():
        if not (fresh := [key for key in members if key in new]):
            _hosts_of(view, members, after, wheres)
            continue
        if fresh[0].kind in SHARED:
            found[fresh[0]] = ""
            continue
        host = _host_of(view, members, after, wheres, counts, default)
        counts[host] = counts.get(host, 0) + sum(key.kind == "controller" for key in fresh)
        found |= dict.fromkeys(fresh, host)
    return found


def _hosts_of(
    view: View, members: Iterable[Key], after: Mapping[Key, AnyObject], wheres: Mapping[Key, Where]
) -> dict[str, Key]:
    """Hosts on which something of a group is, or is said to be: where what it lies on is, too.

    :raises ConflictError: two hosts.
    """
    there: dict[str, Key] = {}
    for member in members:
        for key in (member, *after[member].depends_on):
            where = wheres.get(key)
            host = view.objects[key].host if key in view.objects else where.host if where else ""
            if host:
                there.setdefault(host, key)
    if len(there) > 1:
        first, second, *_ = there.items()
        raise ConflictError(
            f"{first[1].words}: on host {first[0]}, and what it goes with, {second[1].words}, on host {second[0]}"
        )
    return there


def _host_of(
    view: View,
    members: Iterable[Key],
    after: Mapping[Key, AnyObject],
    wheres: Mapping[Key, Where],
    counts: Mapping[str, int],
    default: str,
) -> str:
    for host, key in _hosts_of(view, members, after, wheres).items():
        _check(view, host, key)
        return host
    asked = [(key, where) for key in members if (where := wheres.get(key)) and where.places]
    if not asked and default:
        _check(view, default, next(iter(members)))
        return default
    return _chosen(view, asked, counts, next(iter(members)))


def _check(view: View, host: str, key: Key) -> None:
    if host not in view.hosts:
        raise NotFoundError(f"{key.words}: there is no host {host}; `nvmuser host list` shows those that there are")
    if view.hosts[host].cordoned:
        raise ConflictError(f"{key.words}: host {host} is cordoned; `nvmuser host uncordon {host}`, or choose another")


def _chosen(view: View, asked: list[tuple[Key, Where]], counts: Mapping[str, int], key: Key) -> str:
    labels: dict[str, str] = {}
    for _, where in asked:
        for name, value in where.labels.items():
            if labels.setdefault(name, value) != value:
                raise UsageError(
                    f"{key.words}: label {name} is to be {labels[name]}, and {value} for what it goes with"
                )
    rules = {where.rule or "spread" for _, where in asked} or {"spread"}
    if len(rules) > 1:
        raise UsageError(f"{key.words}: both spread and packed: say one rule of what goes together")
    fitting = [
        host.name
        for host in view.hosts.values()
        if not host.cordoned and all(host.labels.get(name) == value for name, value in labels.items())
    ]
    if not fitting:
        what = ", ".join(f"{name}={value}" for name, value in labels.items()) or "no cordon"
        raise ConflictError(f"{key.words}: no host has {what}")
    sign = -1 if rules == {"pack"} else 1
    return min(fitting, key=lambda name: (sign * counts.get(name, 0), name))
