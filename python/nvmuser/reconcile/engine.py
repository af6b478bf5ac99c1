"""Makes SPDK agree with the store. Every command, every specification and every recovery is the same act here.

Owns the order of a change: the store first, then what moves from one target to another (`transit`), then each target
that has to do with it (`site`). One engine executes at a time: the supervisor's, while it lives. It owns no process,
and the connections to SPDK are lent to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from nvmuser.errors import (
    ConflictError,
    NvmuserError,
    RpcConnectionError,
    RpcError,
    RpcTimeoutError,
    TargetError,
    TargetNotRunning,
    summary,
)
from nvmuser.hostfs import access
from nvmuser.hostfs.fences import Journal
from nvmuser.hostfs.sockets import answers
from nvmuser.hostfs.space import file_systems
from nvmuser.model.batch import joined
from nvmuser.model.change import Change, losses, next_desired
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Remote, TargetSettings, Volume
from nvmuser.model.placement import changed_meanwhile, involved, moving, places
from nvmuser.paths import DEFAULT_TARGET, StateDir
from nvmuser.reconcile import backends
from nvmuser.reconcile.actual import Actual, merged, query
from nvmuser.reconcile.calls import Problem
from nvmuser.reconcile.declare import check_cores, declared
from nvmuser.reconcile.declare_images import completed
from nvmuser.reconcile.outcome import Outcome
from nvmuser.reconcile.partial import touched
from nvmuser.reconcile.peers import Peers
from nvmuser.reconcile.reroute import moved, reachable
from nvmuser.reconcile.retraction import Retraction
from nvmuser.reconcile.site import Site, looked_at
from nvmuser.reconcile.status import Status, together
from nvmuser.reconcile.tidy import tidy
from nvmuser.reconcile.transit import Transit
from nvmuser.rpc import methods
from nvmuser.rpc.client import Client
from nvmuser.store import Store
from nvmuser.store.events import Actor, acting

_ROUNDS = 2
"""What a deletion leaves without a controller may belong to another target."""

log = logging.getLogger(__name__)


class Engine:
    """The executor of one state directory. Its caller serialises the acts."""

    def __init__(self, state: StateDir, rpc: Client | None = None) -> None:
        self._state = state
        self._store = Store(state.store)
        self._sites: dict[str, Site] = {}
        self.peers = Peers()
        self._stuck: dict[Key, Problem] = {}
        """What could not be taken away from this machine."""
        self.transit = Transit(self._sites)
        self._retraction = Retraction(self._store, self.transit, self._look_if_possible, self.reconcile)
        self.site(DEFAULT_TARGET).rpc = rpc

    def site(self, name: str) -> Site:
        """A target as this engine knows it; a new one where there was none of this name."""
        if name not in self._sites:
            scope = functools.partial(self.transit.scope, name)
            self._sites[name] = Site(self._state, self._store, scope, self.peers)
        return self._sites[name]

    def drop_site(self, name: str) -> None:
        """There is no such target any more, and its process has ended. Nothing happens to one that is not known."""
        if site := self._sites.pop(name, None):
            site.stop()
            site.lost()

    @property
    def rpc(self) -> Client | None:
        """The default target's connection; None while there is none."""
        return self.site(DEFAULT_TARGET).rpc

    @rpc.setter
    def rpc(self, rpc: Client | None) -> None:
        self.site(DEFAULT_TARGET).rpc = rpc

    @property
    def warnings(self) -> tuple[str, ...]:
        """What works, but is less safe than it should be."""
        return tuple(dict.fromkeys(warning for site in self._sites.values() for warning in site.warnings))

    @property
    def problems(self) -> dict[Key, Problem]:
        """What is wrong with objects, as far as their targets have been looked at."""
        return {key: problem for site in self._sites.values() for key, problem in site.problems.items()} | self._stuck

    def close(self) -> None:
        """May be called again. The connections to SPDK are not closed: they were lent."""
        for site in self._sites.values():
            site.stop()
        self._store.close()

    @staticmethod
    async def prepare(rpc: Client) -> None:
        """What a standby target can have before any volume is opened: the transport."""
        transport = methods.create_transport()
        await rpc.call(transport.method, transport.params)

    def desired(self) -> Desired:
        """What is wanted."""
        return self._store.load()

    def target_settings(self, name: str = DEFAULT_TARGET) -> TargetSettings:
        """How the next process of a target is to be run.

        :raises NotFoundError: there is no such target.
        """
        return self._store.load().target(name)

    def check(self, change: Change) -> None:
        """Check whether a change is possible, as far as can be known without doing anything.

        :raises NvmuserError: it is not; the message has the reason.
        """
        declared(self._store.load(), change, self._state)

    def declare(self, settings: TargetSettings) -> None:
        """Record how targets are to be run.

        :raises ConflictError: a volume in use does not go with it. :raises UsageError: a core is not ours.
        """
        check_cores(settings)
        with self._store.transaction():
            before = self._store.load()
            known = settings.key in before.entries
            change = Change(update=(settings,)) if known else Change(create=(settings,))
            self._store.put([next_desired(before, change, lambda volume: volume).entries[settings.key]])

    def controllers(self, target: str | None = None) -> list[str]:
        """Names of those that guests may connect to through the endpoint, which promises that they survive.

        :param target: only those that are on it now.
        """
        whole = self._store.load()
        desired = whole if target is None else self.transit.scope(target, whole)
        return [
            controller.name
            for controller in desired.controllers()
            if controller.volatile or desired.surviving(controller)
        ]

    def losses(self, change: Change) -> dict[Controller, str]:
        """What a change takes away from controllers; empty if it is forced."""
        desired = self._store.load()
        lost = {} if change.force else losses(desired, change)
        known = {controller.name: controller for controller in desired.controllers()}
        return {known[name]: what for name, what in lost.items() if name in known}

    async def moved_remotes(self) -> list[Remote]:
        """Remotes with a path that has no connection, and whose name leads to where one is taken, on whichever target.

        :raises SetupError: who we are to remotes is not known.
        :raises RpcError: SPDK does not answer.
        """
        sites = [(site.wanted, site.rpc) for site in self._sites.values()]
        found = [await moved(desired, rpc, self._state) for desired, rpc in sites if rpc]
        return [remote for remotes in found for remote in remotes]

    async def absent_remotes(self) -> list[Remote]:
        """Remotes that a target could not attach, and that take a connection now.

        :raises SetupError: who we are to remotes is not known. :raises RpcError: SPDK does not answer.
        """
        if not (failing := [key for key in self.problems if key.kind == Remote.kind]):
            return []
        sites = [(site.wanted, site.rpc) for site in self._sites.values()]
        found = [await reachable(desired, failing, rpc, self._state) for desired, rpc in sites if rpc]
        return [remote for remotes in found for remote in remotes]

    async def changed_hands(self) -> list[Key]:
        """Remote volumes whose reservation somebody has taken or given up since it was last looked at."""
        return [key for site in list(self._sites.values()) for key in await site.changed_hands()]

    def unopened_images(self) -> list[Volume]:
        """Volumes in Ceph that are wanted, and that a target which serves could not open."""
        failing = self.problems.keys()
        return [volume for volume in self._store.load().volumes() if volume.cluster and volume.key in failing]

    def open_sockets(self) -> None:
        """Set owner and mode of the sockets that the endpoint has made."""
        for controller in self._store.load().controllers():
            try:
                access.settle(self._state, controller)
            except NvmuserError as error:
                log.warning("%s", error)

    # -- acts ------------------------------------------------------------------------------------------------

    async def change(self, change: Change) -> Outcome:
        """Record what is wanted from now on, and carry it out.

        When SPDK or the machine refuses, what was recorded and done is undone, and the reason is raised. When
        the target dies meanwhile, the change stands, and takes effect with the next one.

        :raises NvmuserError: nothing has changed, or the message has what did.
        """
        [found] = await self.change_together([change])
        if isinstance(found, NvmuserError):
            raise found
        return found

    async def change_together(
        self, changes: Sequence[Change], actors: Sequence[Actor] = ()
    ) -> list[Outcome | NvmuserError]:
        """As `change`, for changes that do not touch each other (`model.batch`): recorded in one transaction, carried
        out in one act. What is refused of one is undone, and the others stand.

        :param actors: whose changes they are; empty: those of the current actor.
        :returns: for each what it came to, or why nothing of it has changed.
        :raises NvmuserError: of none has anything changed.
        """
        changes, whole, before, after, moved = await asyncio.to_thread(self._completed_and_recorded, changes, actors)
        keys, carried = whole.keys | moved.keys(), False
        had_served = any(self._serves(from_) for from_, _ in moved.values())
        try:
            if moved:
                await self.transit.carry(moved, changed_meanwhile(before, after, moved))
            carried = True
            # Of several, one that the machine is not ready for does not hold up the others.
            all_or_nothing = keys if len(changes) == 1 else set[Key]()
            names = involved(whole.keys, before, after, moved)
            outcome = await self.reconcile(names, all_or_nothing, () if moved else touched(whole.keys, before))
        except (RpcConnectionError, RpcTimeoutError) as error:
            log.warning("the target does not answer: %s", error)
            outcome = Outcome(pending=True)
        except NvmuserError as error:
            reasons = [Problem(key, str(error)) for key in list(whole.keys)[:1]]
            left = await self._retraction.undo(before, after, whole, reasons, carried=carried)
            raise TargetError(f"{error}; {left}") from error
        if outcome.pending:
            # What was served goes on where it was.
            ended = [Problem(key, f"target {to} has ended") for key, (_, to) in list(moved.items())[:1] if had_served]
            refused = [ended for _ in changes]
        else:
            refused = [_refused(change, moved, outcome) for change in changes]
        return [
            await self._result(before, after, change, outcome, problems, carried=carried)
            for change, problems in zip(changes, refused, strict=True)
        ]

    async def _result(
        self,
        before: Desired,
        after: Desired,
        change: Change,
        outcome: Outcome,
        refused: list[Problem],
        *,
        carried: bool,
    ) -> Outcome | NvmuserError:
        """What one of several changes came to; undone where it was refused."""
        if refused:
            try:
                left = await self._retraction.undo(before, after, change, refused, carried=carried)
            except NvmuserError as error:
                return error
            return TargetError(f"{summary(refused)}; {left}")
        mentioned = dict.fromkeys(declared.key for declared in (*change.create, *change.update))
        objects = tuple(after.get(key).to_json() for key in mentioned)
        return replace(outcome, objects=objects)

    def _serves(self, name: str) -> bool:
        return name in self._sites and self._sites[name].rpc is not None

    def _completed_and_recorded(
        self, changes: Sequence[Change], actors: Sequence[Actor]
    ) -> tuple[list[Change], Change, Desired, Desired, dict[Key, tuple[str, str]]]:
        before = self._store.load()
        journal = Journal(self._state.fences)
        complete = [completed(change, before, journal) for change in changes]
        whole = joined(complete)
        return complete, whole, *self._record(whole, complete, actors)

    def _record(
        self, whole: Change, parts: Sequence[Change], actors: Sequence[Actor]
    ) -> tuple[Desired, Desired, dict[Key, tuple[str, str]]]:
        """Record a change, and flush it to the disk, which may be slow. Returns both states, and what moves.

        :param parts: what the change was joined of.
        """
        moved: dict[Key, tuple[str, str]] = {}
        try:
            with self._store.transaction():
                before = self._store.load()
                after = declared(before, whole, self._state)
                moved = moving(before, after)
                if moved and len(parts) > 1:
                    raise ConflictError("what goes from one target to another goes alone")
                self.transit.check(moved)
                self.transit.begin(moved)
                for part, actor in itertools.zip_longest(parts, actors):
                    with acting(actor) if actor else contextlib.nullcontext():
                        self._store.put(after.entries[key] for key in part.keys)
        except BaseException:
            self.transit.give_up(moved)
            raise
        return before, after, moved

    async def reconcile(
        self,
        targets: Collection[str] | None = None,
        all_or_nothing: Collection[Key] = (),
        changed: Collection[Key] = (),
        *,
        urgent: bool = False,
    ) -> Outcome:
        """Carry out what is wanted, until nothing is left to do or no progress is possible.

        :param targets: names of those that are looked at; None: all.
        :param all_or_nothing: keys of objects: if this machine is not ready for one of them, nothing is done in SPDK.
        :param changed: keys of what alone has changed, where that is known.
        :param urgent: whether that is looked at alone also when everything was last looked at long ago. Its caller has
            to look at everything soon.
        :raises RpcError: SPDK cannot be asked what it has.
        """
        if not any(site.rpc for site in self._sites.values()):
            return await asyncio.to_thread(self._offline)
        names, outcome = set(self._sites if targets is None else targets), Outcome()
        for _ in range(_ROUNDS):
            if came := await self._bring_home(names):
                names, changed = names | came, ()
            outcome += await self._reconcile(names, all_or_nothing, changed, urgent=urgent)
            if outcome.pending or any(problem.object in all_or_nothing for problem in outcome.problems):
                return outcome
            deleted = self._store.load().deleted()
            self._stuck = await asyncio.to_thread(self._forget_deleted) if deleted else {}
            outcome = outcome.with_problems(self._stuck)
            if not self._strays(names):
                break
        return outcome

    async def _reconcile(
        self, names: Collection[str], all_or_nothing: Collection[Key], changed: Collection[Key], *, urgent: bool
    ) -> Outcome:
        outcome = Outcome()
        for name in sorted(names):
            site = self._sites.get(name)
            if site:
                outcome += await site.reconcile(all_or_nothing, changed, urgent=urgent)
            else:
                outcome += Outcome(pending=True)
            if any(problem.object in all_or_nothing for problem in outcome.problems):
                break
        return outcome

    def _strays(self, names: Collection[str]) -> dict[Key, tuple[str, str]]:
        """What a target has that belongs to another, where one of both is among `names`: where it is, and belongs.

        It was shown by a controller that is gone, or an earlier engine was killed in the middle of a move.
        """
        strays = {key: name for name, site in self._sites.items() if site.rpc for key in site.strays}
        where = places(self._store.load()) if strays else {}
        pairs = {key: (name, min(where[key])) for key, name in strays.items() if key in where}
        return {key: pair for key, pair in pairs.items() if not set(pair).isdisjoint(names)}

    async def _bring_home(self, names: Collection[str]) -> set[str]:
        """Close what is on another target than the one that it belongs to. Returns the names of the latter."""
        strays = self._strays(names)
        if strays:
            self.transit.begin(strays)
            await self.transit.carry(strays, {key.name for key in strays})
        return {to for _, to in strays.values()}

    async def _look_if_possible(self) -> Actual:
        """What SPDK has; nothing where there is none that answers."""
        found = []
        for site in self._sites.values():
            if site.rpc:
                with contextlib.suppress(RpcError):
                    found.append(await query(site.rpc))
        return merged(found)

    async def status(self) -> Status:
        """How what is wanted and what SPDK has compare. Changes nothing.

        :raises TargetNotRunning: there is no SPDK to look at.
        """
        desired = self._store.load()
        live = [site for site in self._sites.values() if site.rpc]
        if not live:
            raise TargetNotRunning("the target is not running; start it with `nvmuser target start`")
        found = together(await looked_at(live), [wanted.key for wanted in desired.wanted()])
        spaces = [str(space) for space in file_systems(desired.volumes()) if space.short]
        return replace(found, space=(*spaces, *found.space))

    # -- steps -----------------------------------------------------------------------------------------------

    def _forget_deleted(self) -> dict[Key, Problem]:
        """Remove the files and the tombstones of what no target has any more."""
        desired = self._store.load()
        deleted = {key: entry for key, entry in desired.entries.items() if entry.deleting}
        where = places(desired)
        unknown = {name for name, site in self._sites.items() if not site.rpc}
        here = {key for site in self._sites.values() for key in site.present}
        return self._bury([e for key, e in deleted.items() if key not in here and not where[key] & unknown])

    def _bury(self, gone: list[Entry]) -> dict[Key, Problem]:
        errors = tidy(self._state, gone, self._store.load())
        if buried := [entry.object.key for entry in gone if entry.object.key not in errors]:
            with self._store.transaction():
                self._store.remove(buried)
        return {key: Problem(key, str(error)) for key, error in errors.items()}

    def _offline(self) -> Outcome:
        """No target is known. If none lives, files can be made and removed; the rest waits.

        What a target was asked to keep on a disk may still be there when none lives: its tombstones wait for the next.
        """
        problems = self.site(DEFAULT_TARGET).ready_machine(self._store.load())
        desired = self._store.load()
        names = {DEFAULT_TARGET} | {key.name for key in desired.entries if key.kind == TargetSettings.kind}
        if not any(answers(self._state.rpc_socket_of(name)) for name in names):
            deleted = [entry for entry in desired.entries.values() if entry.deleting]
            problems |= self._bury([entry for entry in deleted if not backends.kept_on_a_disk(entry)])
        return Outcome(0, tuple(problems.values()), pending=not problems)


def _refused(change: Change, moved: Mapping[Key, tuple[str, str]], outcome: Outcome) -> list[Problem]:
    """Problems of what one of several changes is about; of what moves, it is alone."""
    mine = change.keys | moved.keys()
    # How the target is run has to wait for the next one: that is no refusal.
    return [one for one in outcome.problems if one.object in mine and one.object.kind != TargetSettings.kind]
