"""One target as the engine sees it: the connection to it, and what of everything wanted belongs in it.

Owns the acts in one SPDK process, one at a time: closing what belongs elsewhere, and bringing about what belongs here.
Which site has what is its caller's.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from nvmuser.errors import RpcError, RpcServerError, SetupError, TargetError, TargetNotRunning, summary
from nvmuser.hostfs import files, locks
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile import backends, clusters, machine, pool_room, reasons, volume_keys
from nvmuser.reconcile.actual import Actual, query
from nvmuser.reconcile.calls import Call, Plan, Problem
from nvmuser.reconcile.clusters import Clusters
from nvmuser.reconcile.execute import Result, execute
from nvmuser.reconcile.gates import directories
from nvmuser.reconcile.outcome import Outcome
from nvmuser.reconcile.ownership import Ownership
from nvmuser.reconcile.partial import part_of, query_part
from nvmuser.reconcile.peers import Peers
from nvmuser.reconcile.plan import closing, plan
from nvmuser.reconcile.rebuilds import Rebuilds
from nvmuser.reconcile.remotes import Routes, explore
from nvmuser.reconcile.reopen import reopen
from nvmuser.reconcile.reservations import Claims, Reservations
from nvmuser.reconcile.space import pools
from nvmuser.reconcile.status import Status, status_of
from nvmuser.rpc import methods
from nvmuser.rpc.client import Client
from nvmuser.store import Store

_ROUNDS = 8
"""Rounds of query and repair. Two are usual; each layer of volumes on pools on volumes can need one more."""

_FRESH_S = 5.0
"""While one change follows another, everything is looked at so often; in between, what has changed alone."""
_PART_ROUNDS = 3

_SOCKET_S = 0.001
_PAUSE_S = 0.05
"""Before what SPDK has refused only for the moment is asked for again."""

log = logging.getLogger(__name__)

Scope = Callable[[Desired], Desired]
"""From everything that is wanted to what of it belongs in one target."""


class Site:
    """Of one SPDK process.

    :param scope: what belongs in it.
    """

    def __init__(self, state: StateDir, store: Store, scope: Scope, peers: Peers | None = None) -> None:
        self._state = state
        self._store = store
        self._scope = scope
        self._rebuilds = Rebuilds(store)
        self._clusters = Clusters(state, peers)
        self._directory = functools.cache(state.target_dir)
        self._turn = asyncio.Lock()
        self.rpc: Client | None = None
        """The target's; None while there is none."""
        self._reservations = Reservations(state, peers)
        self._unlocked: tuple[str, ...] = ()
        """Why files are not locked."""
        self.problems: dict[Key, Problem] = {}
        """What was wrong with objects when all of them were last looked at."""
        self._seen: tuple[Client | None, float] = (None, 0.0)
        """In which process everything was looked at last, and when."""
        self.present: frozenset[Key] = frozenset()
        """What it had of ours when it was last looked at."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What works, but is less safe than it should be."""
        return self._unlocked + self._reservations.claims.warnings

    def stop(self) -> None:
        """May be called again."""
        self._rebuilds.stop()
        self._clusters.stop()

    def lost(self) -> None:
        """The target has ended: it has nothing any more."""
        self._clusters.lost(self.wanted)
        self.rpc, self.present = None, frozenset()
        self._reservations.lost()

    @property
    def wanted(self) -> Desired:
        """What of everything wanted belongs here now."""
        return self._scope(self._store.load())

    async def reconcile(
        self, all_or_nothing: Collection[Key] = (), changed: Collection[Key] = (), *, urgent: bool = False
    ) -> Outcome:
        """Carry out what is wanted here, until nothing is left to do or no progress is possible.

        :param all_or_nothing: keys of objects: if this machine is not ready for one of them, nothing is done in SPDK.
        :param changed: keys of what alone has changed, where that is known.
        :param urgent: whether that is looked at alone also when everything was last looked at long ago, and only before
            it is carried out.
        :raises RpcError: SPDK cannot be asked what it has.
        """
        async with self._turn:
            if self.rpc is None:
                return Outcome(pending=True)
            if changed and (self._is_known or (urgent and self._was_known)):
                with contextlib.suppress(RpcServerError):
                    if found := await self._reconcile_part(self.rpc, changed, urgent=urgent):
                        return found
            return await self._reconcile(self.rpc, all_or_nothing)

    @property
    def _is_known(self) -> bool:
        """Whether everything was seen a moment ago to be as it should be, in this very process."""
        return self._was_known and time.monotonic() < self._seen[1] + _FRESH_S

    @property
    def _was_known(self) -> bool:
        """Whether everything was as it should be when it was last looked at, in this very process."""
        return self._seen[0] is self.rpc and not self.problems

    async def _reconcile_part(self, rpc: Client, changed: Collection[Key], *, urgent: bool) -> Outcome | None:
        """What has changed, looked at by itself. None: it is not as simple as that, and everything is to be looked
        at."""
        part = part_of(self.wanted, changed)
        unready = await asyncio.to_thread(self.ready_machine, part) if part else {}
        if part is None or unready:
            return None
        calls, opened = 0, set[Key]()
        for _ in range(_PART_ROUNDS):
            actual = await query_part(rpc, part)
            current = plan(part, actual, self._directory) if actual else Plan(waiting=frozenset(changed))
            if actual is None or current.conflicts or current.waiting:
                return None
            await self._adopt(part, current.adopted)
            if not current.calls:
                there = {key for key, entry in part.entries.items() if backends.present(entry.object, part, actual)}
                self.present = frozenset(self.present - part.entries.keys() | there)
                locked = not opened or not await self._lock(rpc, opened, part)
                return Outcome(calls) if locked else None
            result = await self._run(rpc, part, list(current.calls), {})
            if result.lost or result.failed or result.skipped:
                return None
            calls += len(result.done)
            opened |= {call.object for call in result.done if call.needs.file}
            if urgent:
                self.present |= {key for key, entry in part.entries.items() if not entry.deleting}
                return None if await self._lock(rpc, opened, part) else Outcome(calls)
        return None

    async def _reconcile(self, rpc: Client, all_or_nothing: Collection[Key]) -> Outcome:
        calls, problems, current, actual = 0, dict[Key, Problem](), Plan(), Actual()
        unready = await asyncio.to_thread(lambda: self.ready_machine(self.wanted))
        unready |= await self._ready_clusters(rpc)
        if not unready.keys().isdisjoint(all_or_nothing):
            return Outcome(0, tuple(unready.values()))
        without, opened, reopened = frozenset[Key](), set[Key](), False
        routes: Routes | None = None
        for _ in range(_ROUNDS):
            problems = dict(unready)
            actual = await query(rpc)
            desired = self._scope(await asyncio.to_thread(self._rebuilds.note, actual))
            routes = routes or await explore(desired, actual, self._state)
            claims = await self._claim(rpc, desired, actual, all_or_nothing)
            problems |= await volume_keys.settle(rpc, self._state, desired, actual)
            current = plan(desired, actual, self._directory, without, routes, claims=claims)
            await self._adopt(desired, current.adopted)
            runnable = current.runnable(problems, actual.find)
            if runnable:
                examined = backends.to_examine(desired, actual)
                result = await self._examine_and_run(rpc, desired, runnable, examined, problems)
                calls += len(result.done)
                opened |= {call.object for call in result.done if call.needs.file}
                if result.lost:
                    return Outcome(calls, (), current.foreign, pending=True)
                if not result.done and any(reasons.is_transient(error) for _, error in result.failed):
                    await asyncio.sleep(_PAUSE_S)
                    continue
            if not runnable or not result.done:
                if not reopened and await reopen(rpc, desired, actual):
                    reopened = True
                    continue
                # Nothing else comes: mirrors need not wait for it any longer.
                more, refused = await self._rebuilds.degrade(rpc, actual)
                problems |= refused
                if more is not None and more <= without:
                    break
                without |= more or frozenset()
        self._rebuilds.watch(rpc, actual)
        self._look(self._store.load(), actual)
        self._seen = (rpc, time.monotonic())
        problems |= await self._lock(rpc, opened)
        await self._settle(current, problems, desired, actual)
        return Outcome(calls, tuple(self.problems.values()), current.foreign)

    async def _settle(self, current: Plan, problems: dict[Key, Problem], desired: Desired, actual: Actual) -> None:
        """Everything that is wanted here has been looked at: what is wrong in the end.

        :param problems: of what was done.
        """
        problems = problems | {problem.object: problem for problem in (*current.conflicts, *current.restart)}
        problems |= await asyncio.to_thread(lambda: pool_room.reserve_all(self.wanted))
        # Report objects that still wait when no progress is possible.
        self.problems = problems | reasons.missing(current.waiting, problems, desired, actual)

    async def leave(self, deadline: float) -> None:
        """Close what belongs elsewhere. Nothing of it is open here any more when this returns: no I/O is in flight,
        and no guest's memory is mapped.

        :param deadline: seconds.
        :raises RpcError: SPDK does not answer.
        :raises TargetError: it has something open still.
        """
        open_still: list[Key] = []
        async with self._turn:
            if self.rpc is None:
                return
            try:
                async with asyncio.timeout(deadline):
                    await self._leave(self.rpc, open_still)
            except TimeoutError:
                what = ", ".join(key.words for key in open_still) or "what goes to another target"
                raise TargetError(f"it has not closed {what} within {deadline:g} s") from None

    async def _leave(self, rpc: Client, open_still: list[Key]) -> None:
        whole = self._store.load()
        going: list[Controller] = []
        while True:
            actual = await query(rpc)
            strays = self._strays(whole, actual)
            open_still[:] = strays
            if not strays:
                break
            going += [entry.object for entry in strays.values() if isinstance(entry.object, Controller)]
            desired = Desired({**self._scope(whole).entries, **strays})
            current = closing(desired, actual, frozenset(strays))
            gate, _ = directories((), self._state)
            result = await execute(rpc, current.calls, lambda call: None, gate)
            if not result.done:
                await asyncio.sleep(_PAUSE_S)
        self._look(whole, actual)
        # SPDK removes a listener's socket as the last thing, when the guest's connection is taken apart
        # (`nvmf_vfio_user_destroy_endpoint`): not before is another's there under the same path.
        for controller in going:
            while self._directory(controller.name).joinpath("cntrl").exists():  # noqa: ASYNC110 (a file)
                await asyncio.sleep(_SOCKET_S)

    def _strays(self, whole: Desired, actual: Actual) -> dict[Key, Entry]:
        """What is here and belongs elsewhere, as if it were deleted."""
        part = self._scope(whole)
        others = {key: entry for key, entry in whole.entries.items() if key not in part.entries}
        here = {key: entry for key, entry in others.items() if backends.present(entry.object, whole, actual)}
        return {key: replace(entry, deleting=True) for key, entry in here.items()}

    async def look(self) -> None:
        """See what is here.

        :raises RpcError: SPDK cannot be asked what it has.
        """
        async with self._turn:
            if self.rpc:
                self._look(self._store.load(), await query(self.rpc))

    def _look(self, whole: Desired, actual: Actual) -> None:
        entries = whole.entries.items()
        self.present = frozenset(key for key, entry in entries if backends.present(entry.object, whole, actual))

    @property
    def strays(self) -> frozenset[Key]:
        """What is here, as far as is known, and belongs elsewhere."""
        whole = self._store.load()
        part = self._scope(whole)
        return frozenset() if part is whole else self.present & whole.entries.keys() - part.entries.keys()

    async def status(self) -> Status:
        """How what is wanted here and what SPDK has compare. Changes nothing.

        :raises TargetNotRunning: there is no SPDK to look at.
        """
        if self.rpc is None:
            raise TargetNotRunning("the target is not running; start it with `nvmuser target start`")
        actual, whole = await query(self.rpc), self._store.load()
        desired = self._scope(whole)
        routes = await explore(desired, actual, self._state)
        found = status_of(desired, actual, plan(desired, actual, self._directory, routes=routes), routes)
        if desired is not whole:
            # What is on its way to another target is not ours here, and nobody else's.
            found = replace(found, foreign=tuple(Ownership(whole, actual).foreign(self._directory)))
        away = await clusters.away(desired, actual)
        return replace(
            found, away=away, space=tuple(str(space) for space in pools(desired, actual).values() if space.short)
        )

    async def release(self) -> None:
        """Disconnect the guests from a target that is about to end: their I/O is finished when this returns.

        SPDK 26.01 without our patches, as an older target may be, crashes when it shuts down while a guest's end still
        pauses and resumes its subsystem; listeners are removed in line with that.
        """
        if self.rpc is None:
            return
        calls = [methods.remove_listener(c.nqn, str(self._directory(c.name))) for c in self.wanted.controllers()]
        replies = (self.rpc.call(request.method, request.params) for request in calls)
        await asyncio.gather(*replies, return_exceptions=True)

    def sync_files(self) -> None:
        """Flush every file volume to its disk.

        :raises TargetError: one is not.
        """
        wanted = self.wanted
        closed = wanted.closed
        volumes = [volume for volume in wanted.volumes() if volume.backend == "file" and volume.key not in closed]
        if failures := files.each(files.sync, volumes):
            raise TargetError(summary(failures.values()))

    # -- steps -----------------------------------------------------------------------------------------------

    def ready_machine(self, desired: Desired) -> dict[Key, Problem]:
        """Files and directories. It waits for the disk."""
        pool_room.reserve_all(desired)  # What has none is reported when its pool has been tried.
        made, problems = machine.provision(desired, self._state)
        self._mark(made)
        return problems | machine.grant(desired, self._state)

    async def _ready_clusters(self, rpc: Client) -> dict[Key, Problem]:
        """Connections to Ceph, and images."""
        desired = await asyncio.to_thread(lambda: self.wanted)
        if not any(volume.cluster for volume in desired.volumes()):
            self._clusters.stop()
            return {}
        readied = await self._clusters.ready(desired, await query(rpc), rpc)
        self._clusters.stand_by(desired)
        await self._record(readied.made)
        return readied.problems or {}

    async def _claim(self, rpc: Client, desired: Desired, actual: Actual, changed: Collection[Key]) -> Claims:
        """Make sure that nobody else writes to the volumes of remotes, before a guest gets to them.

        :param changed: keys of what a change is about.
        """
        entries = [entry for key, entry in desired.entries.items() if key.kind == "volume" and not entry.provisioned]
        unopened = [e.object for e in entries if isinstance(e.object, Volume) and e.object.backend == "remote"]
        new = {volume.key for volume in unopened} & set(changed)
        claims = await self._reservations.settle(rpc, desired, actual, new, changed)
        opened = {volume.key for volume in unopened} & (claims.release.keys() | claims.shared.keys())
        await self._record(opened - claims.refused.keys())
        return claims

    async def changed_hands(self) -> list[Key]:
        """Remote volumes whose reservation somebody has taken or given up since it was last looked at."""
        return await self._reservations.changed() if self.rpc else []

    async def _adopt(self, desired: Desired, keys: Iterable[Key]) -> None:
        """Mark objects found in SPDK as provisioned: an earlier run may have died before it recorded them."""
        new = [entry for key in keys if not (entry := desired.entries[key]).provisioned]
        await self._record(entry.object.key for entry in new if backends.made_once(entry.object))

    async def _record(self, keys: Iterable[Key], *, asked: bool = False) -> None:
        """As `_mark`, which waits for the disk."""
        if keys := list(keys):
            await asyncio.to_thread(self._mark, keys, asked=asked)

    def _mark(self, keys: Iterable[Key], *, asked: bool = False) -> None:
        if keys := list(keys):
            with self._store.transaction():
                self._store.mark(keys, asked=asked)

    async def _examine_and_run(
        self, rpc: Client, desired: Desired, calls: list[Call], names: list[str], problems: dict[Key, Problem]
    ) -> Result:
        """:param names: bdevs that hold SPDK's own metadata, to be looked for when they come."""
        examined = [rpc.post(one.method, one.params) for one in map(methods.examine, names)]
        # Refused for names that it knows; what is then not found is reported as missing.
        await asyncio.gather(*examined, return_exceptions=True)
        return await self._run(rpc, desired, calls, problems)

    async def _run(self, rpc: Client, desired: Desired, calls: list[Call], problems: dict[Key, Problem]) -> Result:
        gate, failures = directories(calls, self._state)

        def ready(call: Call) -> None:
            """Check that this machine is ready for the call.

            :raises NvmuserError: it is not.
            """
            if call.needs.file:
                locks.check_free(call.needs.file)
            elif call.needs.directory and call.object in failures:
                raise failures[call.object]

        asking = {call.object for call in calls if call.provisions}
        new = [entry for key in asking if not (entry := desired.entries[key]).provisioned]
        await self._record((entry.object.key for entry in new if not entry.asked), asked=True)
        result = await execute(rpc, calls, ready, gate)
        await self._record(call.object for call in result.done if call.provisions)
        for call, error in result.failed:
            log.warning("%s: %s", call.object, error)
            why = await reasons.explain(call, error, desired, self._state, rpc)
            problems[call.object] = Problem(call.object, why)
        for call in result.skipped:
            problems.setdefault(call.object, Problem(call.object, reasons.FAILED_BELOW))
        return result

    async def _lock(self, rpc: Client, opened: Collection[Key], part: Desired | None = None) -> dict[Key, Problem]:
        """Lock the files that the target has open for it alone. One that cannot be locked is another program's.

        :param opened: keys of volumes that were opened in this act: they are closed again.
        :param part: only these volumes; None: all.
        """
        desired: Desired = part if part is not None else await asyncio.to_thread(lambda: self.wanted)
        if not (pid := rpc.peer_pid):
            return {}
        try:
            problems = await asyncio.to_thread(machine.lock, desired, pid)
        except SetupError as error:
            # As in a container without the right to: everything else is done, and is not undone for want of this.
            self._unlocked = (f"volumes are not locked against other programs: {error}",)
            return {}
        self._unlocked = ()
        mine = problems.keys() & opened
        closing = [backends.delete(volume, desired) for volume in desired.volumes() if volume.key in mine]
        await asyncio.gather(*(rpc.post(one.method, one.params) for one in closing if one), return_exceptions=True)
        return problems


async def looked_at(sites: Sequence[Site]) -> list[Status]:
    """How those targets fare that answer.

    :raises NvmuserError: none does, or something else is in the way.
    """
    results = await asyncio.gather(*(site.status() for site in sites), return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    if failures and (len(failures) == len(results) or not all(isinstance(one, RpcError) for one in failures)):
        raise failures[0]
    return [result for result in results if isinstance(result, Status)]
