"""Makes SPDK agree with the store. Every command, every specification and every recovery is the same act here.

Owns the order of a change: the store first, then files, then SPDK, then a second look. One engine executes at
a time: the supervisor's, while it lives. It owns no process, and the connection to SPDK is lent to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Collection, Iterable
from dataclasses import replace

from nvmuser.errors import (
    NvmuserError,
    RpcConnectionError,
    RpcError,
    RpcTimeoutError,
    SetupError,
    TargetError,
    TargetNotRunning,
)
from nvmuser.hostfs import access, files, locks
from nvmuser.hostfs.sockets import answers
from nvmuser.hostfs.space import file_systems
from nvmuser.model.change import Change, losses, next_desired
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, TargetSettings
from nvmuser.model.sizes import format_size
from nvmuser.paths import StateDir
from nvmuser.reconcile import backends, machine, pool_room, reasons
from nvmuser.reconcile.actual import Actual, query
from nvmuser.reconcile.calls import Call, Plan, Problem
from nvmuser.reconcile.declare import check_cores, declared
from nvmuser.reconcile.execute import Result, execute
from nvmuser.reconcile.gates import directories
from nvmuser.reconcile.outcome import Outcome
from nvmuser.reconcile.plan import plan
from nvmuser.reconcile.rebuilds import Rebuilds
from nvmuser.reconcile.remotes import Routes, explore
from nvmuser.reconcile.reopen import reopen
from nvmuser.reconcile.space import pools
from nvmuser.reconcile.status import Status, status_of
from nvmuser.reconcile.tidy import tidy
from nvmuser.reconcile.undo import take_back
from nvmuser.rpc import methods
from nvmuser.rpc.client import Client
from nvmuser.store import Store

_ROUNDS = 8
"""Rounds of query and repair. Two are usual; each layer of volumes on pools on volumes can need one more."""

_PAUSE_S = 0.05
"""Before what SPDK has refused only for the moment is asked for again."""

log = logging.getLogger(__name__)


class Engine:
    """The executor of one state directory. Its caller serialises the acts."""

    def __init__(self, state: StateDir, rpc: Client | None = None) -> None:
        self._state = state
        self._store = Store(state.store)
        self._rebuilds = Rebuilds(self._store)
        self._directory = functools.cache(state.target_dir)
        self.rpc = rpc
        """The target's; None while there is none."""
        self.warnings: tuple[str, ...] = ()
        """What works, but is less safe than it should be."""

    def close(self) -> None:
        """May be called again. The connection to SPDK is not closed: it was lent."""
        self._rebuilds.stop()
        self._store.close()

    @staticmethod
    async def prepare(rpc: Client) -> None:
        """What a standby target can have before any volume is opened: the transport."""
        transport = methods.create_transport()
        await rpc.call(transport.method, transport.params)

    def desired(self) -> Desired:
        """What is wanted."""
        return self._store.load()

    def target_settings(self) -> TargetSettings:
        """How the next target is to be run."""
        return self._store.load().target

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

    def controllers(self) -> list[str]:
        """Names of those that guests may connect to through the endpoint, which promises that they survive."""
        desired = self._store.load()
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

    def open_sockets(self) -> None:
        """Set owner and mode of the sockets that the endpoint has made."""
        for controller in self._store.load().controllers():
            try:
                access.settle(self._state, controller)
            except NvmuserError as error:
                log.warning("%s", error)

    async def release(self, rpc: Client) -> None:
        """Disconnect the guests from a target that is about to end: their I/O is finished when this returns.

        SPDK 26.01 without our patches, as an older target may be, crashes when it shuts down while a guest's end still
        pauses and resumes its subsystem; listeners are removed in line with that.
        """
        calls = [
            methods.remove_listener(c.nqn, str(self._state.target_dir(c.name)))
            for c in self._store.load().controllers()
        ]
        await asyncio.gather(*(rpc.call(request.method, request.params) for request in calls), return_exceptions=True)

    def sync_files(self) -> None:
        """Flush every file volume to its disk.

        :raises TargetError: one is not.
        """
        volumes = [volume for volume in self._store.load().volumes() if volume.backend == "file"]
        if failures := files.each(files.sync, volumes):
            raise TargetError("; ".join(map(str, failures.values())))

    # -- acts ------------------------------------------------------------------------------------------------

    async def change(self, change: Change) -> Outcome:
        """Record what is wanted from now on, and carry it out.

        When SPDK or the machine refuses, what was recorded and done is undone, and the reason is raised. When
        the target dies meanwhile, the change stands, and takes effect with the next one.

        :raises NvmuserError: nothing has changed, or the message has what did.
        """
        before, after = await asyncio.to_thread(self._record, change)
        try:
            outcome = await self.reconcile(change.keys)
        except (RpcConnectionError, RpcTimeoutError) as error:
            log.warning("the target does not answer: %s", error)
            outcome = Outcome(pending=True)
        except NvmuserError as error:
            reasons = [Problem(key, str(error)) for key in list(change.keys)[:1]]
            left = await self._undo(before, after, change, reasons)
            raise TargetError(f"{error}; {left}") from error
        mentioned = {declared.key for declared in (*change.create, *change.update)}
        # How the target is run has to wait for the next one: that is no refusal.
        mine = [
            problem
            for problem in outcome.problems
            if problem.object in change.keys and problem.object.kind != TargetSettings.kind
        ]
        if mine and not outcome.pending:
            left = await self._undo(before, after, change, mine)
            raise TargetError(f"{'; '.join(map(str, mine))}; {left}")
        objects = tuple(after.get(key).to_json() for key in after.entries if key in mentioned)
        return replace(outcome, objects=objects)

    def _record(self, change: Change) -> tuple[Desired, Desired]:
        """Record a change, and flush it to the disk, which may be slow. Returns both states."""
        with self._store.transaction():
            before = self._store.load()
            after = declared(before, change, self._state)
            self._store.put(after.entries[key] for key in change.keys)
        return before, after

    async def reconcile(self, all_or_nothing: Collection[Key] = ()) -> Outcome:
        """Carry out what is wanted, until nothing is left to do or no progress is possible.

        :param all_or_nothing: keys of objects: if this machine is not ready for one of them, nothing is done in SPDK.
        :raises RpcError: SPDK cannot be asked what it has.
        """
        if self.rpc is None:
            return await asyncio.to_thread(self._offline)
        calls, problems, current, actual = 0, dict[Key, Problem](), Plan(), Actual()
        unready = await asyncio.to_thread(self._ready_machine)
        if not unready.keys().isdisjoint(all_or_nothing):
            return Outcome(0, tuple(unready.values()))
        without, opened, reopened = frozenset[Key](), set[Key](), False
        routes: Routes | None = None
        for _ in range(_ROUNDS):
            problems = dict(unready)
            actual = await query(self.rpc)
            desired = await asyncio.to_thread(self._rebuilds.note, actual)
            routes = routes or await explore(desired, actual, self._state)
            current = plan(desired, actual, self._directory, without, routes)
            await asyncio.to_thread(self._adopt, desired, current.adopted)
            runnable = current.runnable(problems, actual.find)
            if runnable:
                result = await self._examine_and_run(runnable, backends.to_examine(desired, actual), problems)
                calls += len(result.done)
                opened |= {call.object for call in result.done if call.needs.file}
                if result.lost:
                    return Outcome(calls, (), current.foreign, pending=True)
                if not result.done and any(reasons.is_transient(error) for _, error in result.failed):
                    await asyncio.sleep(_PAUSE_S)
                    continue
            if not runnable or not result.done:
                if not reopened and await reopen(self.rpc, desired, actual):
                    reopened = True
                    continue
                # Nothing else comes: mirrors need not wait for it any longer.
                more, refused = await self._rebuilds.degrade(self.rpc, actual)
                problems |= refused
                if more is not None and more <= without:
                    break
                without |= more or frozenset()
        self._rebuilds.watch(self.rpc, actual)
        problems |= await self._lock(opened)
        problems |= await asyncio.to_thread(self._forget_deleted, actual)
        problems |= await asyncio.to_thread(self._keep_room)
        problems |= {problem.object: problem for problem in (*current.conflicts, *current.restart)}
        # Report objects that still wait when no progress is possible.
        problems |= reasons.missing(current.waiting, problems, desired, actual)
        return Outcome(calls, tuple(problems.values()), current.foreign)

    async def _look_if_possible(self) -> Actual:
        """What SPDK has; nothing where there is none that answers."""
        if self.rpc:
            with contextlib.suppress(RpcError):
                return await query(self.rpc)
        return Actual()

    async def status(self) -> Status:
        """How what is wanted and what SPDK has compare. Changes nothing.

        :raises TargetNotRunning: there is no SPDK to look at.
        """
        if self.rpc is None:
            raise TargetNotRunning("the target is not running; start it with `nvmuser target start`")
        desired = self._store.load()
        actual = await query(self.rpc)
        routes = await explore(desired, actual, self._state)
        found = status_of(desired, actual, plan(desired, actual, self._directory, routes=routes), routes)
        spaces = [*file_systems(desired.volumes()), *pools(desired, actual).values()]
        return replace(found, space=tuple(str(space) for space in spaces if space.short))

    # -- steps -----------------------------------------------------------------------------------------------

    def _ready_machine(self) -> dict[Key, Problem]:
        """Files and directories. It waits for the disk."""
        self._keep_room()  # What has none is reported when its pool has been tried.
        desired = self._store.load()
        made, problems = machine.provision(desired)
        self._mark(made)
        return problems | machine.grant(desired, self._state)

    def _keep_room(self) -> dict[Key, Problem]:
        return pool_room.reserve_all(self._store.load())

    def _adopt(self, desired: Desired, keys: Iterable[Key]) -> None:
        """Mark objects found in SPDK as provisioned: an earlier run may have died before it recorded them."""
        new = [entry for key in keys if not (entry := desired.entries[key]).provisioned]
        self._mark(entry.object.key for entry in new if backends.made_once(entry.object))

    def _mark(self, keys: Iterable[Key], *, asked: bool = False) -> None:
        if keys := list(keys):
            with self._store.transaction():
                self._store.mark(keys, asked=asked)

    async def _examine_and_run(self, calls: list[Call], names: list[str], problems: dict[Key, Problem]) -> Result:
        """:param names: bdevs that hold SPDK's own metadata, to be looked for when they come."""
        assert self.rpc is not None
        examined = [self.rpc.post(one.method, one.params) for one in map(methods.examine, names)]
        # Refused for names that it knows; what is then not found is reported as missing.
        await asyncio.gather(*examined, return_exceptions=True)
        return await self._run(calls, problems)

    async def _run(self, calls: list[Call], problems: dict[Key, Problem]) -> Result:
        assert self.rpc is not None
        gate, failures = directories(calls, self._state)

        def ready(call: Call) -> None:
            """Check that this machine is ready for the call.

            :raises NvmuserError: it is not.
            """
            if call.needs.file:
                locks.check_free(call.needs.file)
            elif call.needs.directory and call.object in failures:
                raise failures[call.object]

        desired = self._store.load()
        asking = {call.object for call in calls if call.provisions}
        new = [entry for key in asking if not (entry := desired.entries[key]).provisioned]
        await asyncio.to_thread(self._mark, [entry.object.key for entry in new if not entry.asked], asked=True)
        result = await execute(self.rpc, calls, ready, gate)
        await asyncio.to_thread(self._mark, [call.object for call in result.done if call.provisions])
        for call, error in result.failed:
            log.warning("%s: %s", call.object, error)
            why = await reasons.explain(call, error, desired, self._state, self.rpc)
            problems[call.object] = Problem(call.object, why)
        for call in result.skipped:
            problems.setdefault(call.object, Problem(call.object, reasons.FAILED_BELOW))
        return result

    async def _lock(self, opened: Collection[Key]) -> dict[Key, Problem]:
        """Lock the files that the target has open for it alone. One that cannot be locked is another program's.

        :param opened: keys of volumes that were opened in this act: they are closed again.
        """
        desired = await asyncio.to_thread(self._store.load)
        pid = self.rpc.peer_pid if self.rpc else None
        if not self.rpc or not pid:
            return {}
        try:
            problems = await asyncio.to_thread(machine.lock, desired, pid)
        except SetupError as error:
            # As in a container without the right to: everything else is done, and is not undone for want of this.
            self.warnings = (f"volumes are not locked against other programs: {error}",)
            return {}
        self.warnings = ()
        mine = problems.keys() & opened
        closing = [backends.delete(volume, desired) for volume in desired.volumes() if volume.key in mine]
        await asyncio.gather(*(self.rpc.post(one.method, one.params) for one in closing if one), return_exceptions=True)
        return problems

    def _forget_deleted(self, actual: Actual) -> dict[Key, Problem]:
        """Remove the files and the tombstones of what SPDK does not have any more."""
        desired = self._store.load()
        deleted = [entry for entry in desired.entries.values() if entry.deleting]
        return self._bury([entry for entry in deleted if not backends.present(entry.object, desired, actual)])

    def _bury(self, gone: list[Entry]) -> dict[Key, Problem]:
        errors = tidy(self._state, gone)
        if buried := [entry.object.key for entry in gone if entry.object.key not in errors]:
            with self._store.transaction():
                self._store.remove(buried)
        return {key: Problem(key, str(error)) for key, error in errors.items()}

    def _offline(self) -> Outcome:
        """No target is known. If none lives, files can be made and removed; the rest waits.

        What a target was asked to keep on a disk may still be there when none lives: its tombstones wait for the next.
        """
        problems = self._ready_machine()
        if not answers(self._state.rpc_socket):
            deleted = [entry for entry in self._store.load().entries.values() if entry.deleting]
            problems |= self._bury([entry for entry in deleted if not backends.kept_on_a_disk(entry)])
        return Outcome(0, tuple(problems.values()), pending=not problems)

    async def _undo(self, before: Desired, after: Desired, change: Change, reasons: list[Problem]) -> str:
        """Restore what was wanted before, and take away what this change made.

        Returns what has changed all the same, in words: what a guest has seen grow cannot shrink.

        :raises TargetError: it could not be; the message has the reasons for this and for that.
        """
        why = "; ".join(map(str, reasons))
        actual = await self._look_if_possible()
        try:
            grown = await asyncio.to_thread(take_back, self._store, before, after, change, actual)
        except NvmuserError as error:
            raise TargetError(f"{why}; recorded all the same, since that could not be undone: {error}") from error
        try:
            outcome = await self.reconcile()
        except NvmuserError as error:
            log.warning("not undone yet: %s", error)
            return "it is undone when the target answers"
        if left := [problem for problem in outcome.problems if problem.object in change.keys]:
            raise TargetError(f"{why}; not undone: {'; '.join(map(str, left))}")
        if grown:
            sizes = ", ".join(f"volume {volume.name} has {format_size(volume.size)}" for volume in grown)
            return f"but for {sizes} now, nothing was changed"
        return "nothing was changed"
