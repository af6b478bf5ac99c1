"""Remotes attached by their paths: which to add, and which to take away. Pure.

Where a path leads is `nvmuser.reconcile.remotes`' to find out.
"""

from __future__ import annotations

from nvmuser.model.objects import KEEP_ALIVE_S, Remote
from nvmuser.reconcile import remotes
from nvmuser.reconcile.actual import Actual
from nvmuser.reconcile.calls import Needs
from nvmuser.reconcile.draft import Draft
from nvmuser.rpc import methods


def ensure(remote: Remote, actual: Actual, routes: remotes.Routes, draft: Draft) -> tuple[int, ...] | None:
    """The calls after which it is attached by each of its paths; None when it cannot be."""
    present = actual.remotes.get(remote.in_spdk)
    if present and present.nqn != remote.nqn:
        draft.conflict(remote.key, f"an NVMe controller of this name is attached to {present.nqn}")
        return None
    calls: list[int] = []
    kept: set[tuple[str, int]] = set()
    for path in remote.paths:
        there = remotes.attached(path, present, routes)
        addresses = routes.to(path)
        if addresses and not there and (addresses[0], path.port) not in kept:
            there = {(addresses[0], path.port)}
            first = not present and not calls
            calls = calls or _keys(remote, actual, draft)
            request = methods.attach_remote(
                remote.in_spdk,
                remote.nqn,
                addresses[0],
                path.port,
                host=routes.host_for(remote),
                keys=remote.key_files,
                reconnect_s=remote.reconnect_s,
                fail_after_s=remote.fail_after_s,
                keep_alive_s=0 if remote.keep_alive_s == KEEP_ALIVE_S else remote.keep_alive_s,
            )
            needs = Needs(path=(addresses[0], path.port))
            # One after the other: the first makes the controller, the others are added to it.
            calls.append(draft.add("create" if first else "add", request, remote.key, calls[-1:], needs=needs))
        kept |= there
    added = tuple(calls)
    if reason := remotes.unresolved(remote.paths, routes):
        # What is attached may be what the name stood for: it stays.
        draft.conflict(remote.key, reason)
        return added
    for address, port in present.paths if present else ():
        if (address, port) not in kept:
            request = methods.detach_path(remote.in_spdk, remote.nqn, address, port)
            draft.add("delete", request, remote.key, added)
    return added


def _keys(remote: Remote, actual: Actual, draft: Draft) -> list[int]:
    """The calls after which SPDK knows the files of its secrets."""
    calls: list[int] = []
    for name, path in remote.key_files.items():
        known = actual.keys.get(name)
        if known and known != path:
            calls.append(draft.add("replace", methods.remove_key(name), remote.key, calls[-1:]))
        if known != path:
            calls.append(draft.add("add", methods.add_key(name, path), remote.key, calls[-1:]))
    return calls
