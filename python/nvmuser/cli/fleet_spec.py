"""`nvmuser apply` and `nvmuser diff` on a host of a fleet: what the whole fleet is to be, from any host."""

from __future__ import annotations

from dataclasses import dataclass

from nvmuser.errors import UsageError
from nvmuser.extras import require_extra
from nvmuser.fleet.settings import FleetSettings
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.spec import Spec
from nvmuser.paths import StateDir
from nvmuser.reconcile.outcome import Outcome
from nvmuser.supervisor import control
from nvmuser.supervisor.remote import Remote


@dataclass(frozen=True)
class FleetSpec:
    """A specification for the fleet that this host is part of.

    :param host: on which everything is that says nothing else, and to which `--prune` keeps; None: the whole fleet.
    """

    settings: FleetSettings
    spec: Spec
    host: str | None

    @classmethod
    def of(cls, state: StateDir, spec: Spec, host: str | None) -> FleetSpec | None:
        """None where this host belongs to no fleet.

        :raises UsageError: hosts are named, and there is no fleet.
        """
        if not isinstance(state, Remote) and (settings := FleetSettings.load(state)):
            require_extra("fleet", "a host of a fleet")
            return cls(settings, spec, host)
        if host:
            raise UsageError(f"--host {host}: this host belongs to no fleet; `nvmuser fleet join` makes it part of one")
        for key in spec.wheres:
            raise UsageError(
                f"{key.words}: host, labels, rule and failover are for a fleet, and this host belongs to none: leave "
                "them out"
            )
        return None

    async def load(self) -> Desired:
        """What is wanted of the fleet, or of one host.

        :raises FleetError: etcd does not answer. :raises UsageError: there is no such host.
        """
        from nvmuser.fleet.session import session

        async with session(self.settings) as one:
            view = await one.view()
        if self.host is not None and self.host not in view.hosts:
            raise UsageError(f"--host {self.host}: no such host; `nvmuser host list` shows those that there are")
        return view.desired(self.host)

    async def check(self, change: Change) -> None:
        """:raises NvmuserError: the change is not possible."""
        await self.dry_run(change)

    async def dry_run(self, change: Change) -> dict[str, dict[str, list[str]]]:
        """What each host would be asked to do; what many reach is under no name.

        :raises NvmuserError: the change is not possible.
        """
        from nvmuser.fleet.proposal import propose
        from nvmuser.fleet.quotas import charged
        from nvmuser.fleet.session import session

        async with session(self.settings) as one:
            view = await one.view()
            proposal = propose(view, change, self.spec.wheres, self.host or "")
            charged(view, proposal)
        found: dict[str, dict[str, list[str]]] = {}
        for key, after in sorted(proposal.after.items()):
            before = proposal.before.get(key)
            act = "create" if before is None else "delete" if after is None or after.deleting else "update"
            host = (after or before or view.objects[key]).host
            found.setdefault(host, {}).setdefault(act, []).append(str(key))
        return found

    async def submit(self, change: Change) -> Outcome:
        """Have it carried out.

        :raises NvmuserError: nothing has changed, or the message has what did.
        """
        from nvmuser.fleet.session import submit

        if not change.keys and not any(where.failover for where in self.spec.wheres.values()):
            return Outcome()
        return await submit(self.settings, change, control.local_actor(), self.spec.wheres, self.host or "")
