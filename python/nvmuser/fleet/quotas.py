"""What tenants have, and may have at most. Pure.

A tenant has names of its own: `acme.disk` is acme's. A limit is enforced in the transaction of the change: that writes
the tenant's record too, so that of two changes that would pass it together one is refused. What exists already is not
touched by a limit; it only cannot grow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict

from nvmuser.errors import ConflictError
from nvmuser.fleet.etcd.client import Put
from nvmuser.fleet.proposal import Proposal
from nvmuser.fleet.records import Declared, Quota, encode
from nvmuser.fleet.view import View
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.model.sizes import format_size


def usage(view: View, tenant: str) -> Quota:
    """What a tenant has declared."""
    return _sum(view.objects.values(), tenant)


def charged(view: View, proposal: Proposal) -> tuple[dict[str, Put | None], dict[str, int]]:
    """Records of the tenants that a change is of, to be written with it, and their revisions.

    :raises ConflictError: a tenant would have more than it may.
    """
    extra: dict[str, Put | None] = {}
    expect: dict[str, int] = {}
    for tenant in {tenant_of(key.name) for key in proposal.after} & view.tenants.keys():
        changed = {key: proposal.after.get(key, one) for key, one in view.objects.items()} | proposal.after
        after = _sum(filter(None, changed.values()), tenant)
        _check(tenant, view.tenants[tenant], usage(view, tenant), after, proposal.after)
        name = view.keys.tenant(tenant)
        extra[name] = Put(encode(f"tenant {tenant}", view.tenants[tenant].to_json()))
        expect[name] = view.revisions[name]
    return extra, expect


def tenant_of(name: str) -> str:
    """Whose a name is; empty: nobody's in particular."""
    first, dot, _ = name.partition(".")
    return first if dot else ""


def _sum(records: Iterable[Declared], tenant: str) -> Quota:
    objects = [one.object for one in records if not one.deleting]
    mine = [one for one in objects if isinstance(one, Volume) and tenant_of(one.name) == tenant]
    return Quota(len(mine), sum(one.size for one in mine), sum(one.limits.iops for one in mine))


def _check(tenant: str, limit: Quota, before: Quota, after: Quota, changed: Mapping[Key, Declared | None]) -> None:
    numbers = asdict(limit), asdict(before), asdict(after)
    for what in ("volumes", "bytes", "iops"):
        most, was, now = (one[what] for one in numbers)
        if most and now > most and now > was:
            text = format_size if what == "bytes" else str
            raise ConflictError(
                f"tenant {tenant}: {text(now)} {what} would be more than its {text(most)}; "
                f"`nvmuser fleet tenant {tenant}` shows and changes what it may have"
            )
    unlimited = [
        one.object.name
        for one in changed.values()
        if one and isinstance(one.object, Volume) and not one.deleting and not one.object.limits.iops
    ]
    if limit.iops and (mine := [name for name in unlimited if tenant_of(name) == tenant]):
        raise ConflictError(
            f"volume {mine[0]}: tenant {tenant} may promise {limit.iops} IOPS in all, so that each of its volumes has "
            "a limit: declare it with `limits: {iops: …}`"
        )
