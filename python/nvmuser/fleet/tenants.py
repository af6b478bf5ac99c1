"""Who shares a fleet: tenants come to be with a limit, and are forgotten. What a limit means is `quotas`'."""

from __future__ import annotations

from dataclasses import asdict

from nvmuser.errors import NotFoundError
from nvmuser.fleet.etcd.client import Put
from nvmuser.fleet.proposal import Proposal
from nvmuser.fleet.records import Quota, encode
from nvmuser.fleet.session import Session
from nvmuser.fleet.view import View
from nvmuser.model.names import check_name
from nvmuser.store.events import Actor


async def allow(session: Session, tenant: str, actor: Actor, **fields: int) -> Quota:
    """Change what a tenant may have; a tenant that is new comes to be. 0 is no limit.

    :raises StaleError: somebody else has just changed it.
    """
    check_name("tenant", tenant)
    view = await session.view()
    before = view.tenants.get(tenant)
    after = Quota(**(asdict(before or Quota()) | fields))
    if after != before:
        await _write(session, view, tenant, actor, after)
    return after


async def forget(session: Session, tenant: str, actor: Actor) -> None:
    """Limit it no more; what it has stays.

    :raises NotFoundError: there is no such tenant.
    """
    view = await session.view()
    if tenant not in view.tenants:
        raise NotFoundError(f"tenant {tenant}: no such tenant")
    await _write(session, view, tenant, actor, None)


async def _write(session: Session, view: View, tenant: str, actor: Actor, after: Quota | None) -> None:
    name, before = session.keys.tenant(tenant), view.tenants.get(tenant)
    note = {
        "action": "update" if before and after else "create" if after else "delete",
        "kind": "tenant",
        "name": tenant,
        "before": before.to_json() if before else None,
        "after": after.to_json() if after else None,
    }
    record = Put(encode(f"tenant {tenant}", after.to_json())) if after else None
    expect = {name: view.revisions.get(name, 0)}
    await session.writer(actor).write(Proposal(), {name: record}, expect, note)
