"""Endpoints beside the collections: the whole specification, status, events, statistics, guests, long acts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from starlette.responses import Response, StreamingResponse

from nvmuser.api import auth, bodies, guard, schemas
from nvmuser.api.host import Host
from nvmuser.api.objects import AFTER, DRY_RUN, FORCE, PREFER, WIPE, planned
from nvmuser.api.operations import Operation, Operations, accepted, in_background
from nvmuser.api.problems import Problem
from nvmuser.api.routing import Call, Endpoint, Parameter, Reply
from nvmuser.api.watching import Watching
from nvmuser.errors import NvmuserError, UsageError
from nvmuser.fleet.settings import FleetSettings
from nvmuser.guest.registry import registry
from nvmuser.model import spec as specs
from nvmuser.model.change import Change
from nvmuser.model.moves import moves
from nvmuser.model.placement import on
from nvmuser.reconcile.outcome import Outcome
from nvmuser.reconcile.statistics import Statistics, collect, reactors
from nvmuser.supervisor import control

_SPEC_MAX = 16 << 20
_PRUNE = Parameter("prune", "boolean", "Take away what the document does not name.")
_SINCE = Parameter("after", "integer", "Those after the event with this number.", {"minimum": 0})
_LAST = Parameter("last", "integer", "The last so many, where `after` is not given.", {"minimum": 0})
_LIMIT = Parameter("limit", "integer", "How many at most.", {"minimum": 1, "maximum": 1000, "default": 100})
_WATCH = Parameter("watch", "boolean", "Server-sent events, which go on; with `Last-Event-ID` from there.")
_WAIT = Parameter(
    "wait", "integer", "Answer when it has ended, or after so many seconds.", {"minimum": 0, "maximum": 60}
)
_ROLLING = Parameter("rolling", "boolean", "One controller at a time, while both processes live.")
_TO = Parameter("to", "string", "The target that serves it from now on.")
_OPERATION = {202: schemas.ref("operation")}


class Service:
    """The endpoints of one host."""

    def __init__(self, host: Host, operations: Operations, watching: Watching) -> None:
        self._host = host
        self._operations = operations
        self._watching = watching

    def endpoints(self) -> list[Endpoint]:
        any_object: Mapping[str, Any] = {"type": "object"}
        outcome = {200: {"anyOf": [schemas.ref("outcome"), schemas.ref("plan")]}, **_OPERATION}
        events = {200: schemas.page(schemas.ref("event"))}
        return [
            Endpoint("GET", "/v1/principal", self.principal, "show_principal", "Show who I am, and what I may do.",
                     results={200: schemas.ref("principal")}),
            Endpoint("GET", "/v1/status", self.status, "show_status",
                     "Show processes, guests, and what differs (`nvmuser status --json`).", results={200: any_object}),
            Endpoint("GET", "/v1/spec", self.spec, "show_spec", "Show everything that is declared, as one document.",
                     results={200: any_object}),
            Endpoint("POST", "/v1/spec", self.apply, "apply_spec",
                     "Make what is declared what the document says: JSON, or YAML as application/yaml.", "operator",
                     (DRY_RUN, PREFER, _PRUNE, WIPE, FORCE), any_object, outcome),
            Endpoint("GET", "/v1/objects", self.objects, "show_objects",
                     "Show everything that is declared, as the store has it: for nvmuser itself.",
                     results={200: any_object}),
            Endpoint("POST", "/v1/changes", self.change, "make_change",
                     "Carry out several changes as one, all or none: objects as /v1/objects has them.",
                     "operator", (DRY_RUN,), schemas.ref("change"), {200: any_object}),
            Endpoint("POST", "/v1/reconcile", self.reconcile, "reconcile", "Put right what has drifted.", "operator",
                     (PREFER,), None, {200: schemas.ref("outcome"), **_OPERATION}),
            Endpoint("GET", "/v1/events", self.events, "list_events", "List what has been changed, or watch it.",
                     parameters=(_SINCE, _LAST, _LIMIT, _WATCH), results=events),
            Endpoint("GET", "/v1/statistics", self.statistics, "list_statistics",
                     "List what volumes have been asked to do since their target started.",
                     parameters=(_LIMIT, AFTER), results={200: schemas.page(schemas.ref("statistics"))}),
            Endpoint("GET", "/v1/reactors", self.reactors, "list_reactors", "List how busy each core of a target was.",
                     results={200: schemas.page(schemas.ref("reactor"))}),
            Endpoint("GET", "/v1/guests", self.guests, "list_guests", "List guests that nvmuser has started.",
                     results={200: schemas.page(schemas.ref("guest"))}),
            Endpoint("GET", "/v1/hosts", self.hosts, "list_hosts",
                     "List the hosts of the fleet that this host belongs to; none where it belongs to none.",
                     results={200: schemas.page(schemas.ref("host"))}),
            Endpoint("GET", "/v1/operations", self.operations, "list_operations", "List acts that take long.",
                     results={200: schemas.page(schemas.ref("operation"))}),
            Endpoint("GET", "/v1/operations/{id}", self.operation, "show_operation", "Show one, or wait for it.",
                     parameters=(_WAIT,), results={200: schemas.ref("operation")}),
            Endpoint("POST", "/v1/targets/{name}/restart", self.restart, "restart_target",
                     "Replace a target by another process; guests wait.", "admin", (_ROLLING,), None, _OPERATION),
            Endpoint("POST", "/v1/controllers/{name}/move", self.move, "move_controller",
                     "Have a controller served by another target; its guest waits.", "admin", (_TO,), None, _OPERATION),
        ]  # fmt: skip

    async def principal(self, call: Call) -> Reply:
        return Reply(asdict(call.principal))

    async def status(self, call: Call) -> Reply:
        self._host.touch()
        facts = await self._host.ask("status")
        sample = await self._host.fresh()
        if sample.error:
            facts["errors"].append(f"not compared with what is wanted: {sample.error}")
        return Reply(facts | {"objects": sample.drift, "compared_at": round(sample.at, 3)})

    async def spec(self, call: Call) -> Reply:
        return Reply(specs.export(await self._host.desired(), str(self._host.state.volumes), texts=False))

    async def objects(self, call: Call) -> Reply:
        return Reply({"objects": [one.to_json() for one in (await self._host.desired()).wanted()]})

    async def change(self, call: Call) -> Reply:
        data = bodies.mapping(await call.body())
        for field in ("create", "update", "expect", "delete"):
            wanted = str if field == "delete" else dict
            if not isinstance(data.get(field, []), list) or not all(isinstance(i, wanted) for i in data.get(field, [])):
                raise Problem(400, "usage", f"change.{field}: expected a list", f"/{field}")
        for field in ("wipe", "keep_files", "force"):
            if not isinstance(data.get(field, False), bool):
                raise Problem(400, "usage", f"change.{field}: expected true or false", f"/{field}")
        change = Change.from_json(data)
        for one in (*change.create, *change.update):
            one.check_declared()
        for one in change.create:
            if own := [field for field in specs.NOT_FOR_PEOPLE if getattr(one, field, None)]:
                raise Problem(400, "usage", f"{one.key.words}: {own[0]}: the engine records that itself", "/create")
        if call.query.get("dry_run"):
            return await planned(call, change)
        guard.check(call.principal, self._host.state, await self._host.desired(), change)
        return Reply((await self._host.submit(change, call.principal.actor)).to_json())

    async def apply(self, call: Call) -> Reply:
        text = await call.text(_SPEC_MAX)
        try:
            spec = await asyncio.to_thread(specs.parse, text.decode(), "body")
        except UnicodeDecodeError as error:
            raise Problem(400, "usage", f"the body is not UTF-8: {error.reason}") from None
        prune, wipe, force = (bool(call.query.get(name)) for name in ("prune", "wipe", "force"))
        desired = await self._host.desired()
        change = specs.difference(desired, spec, prune=prune, wipe=wipe)
        change = specs.forced(change) if force else change
        guard.check(call.principal, self._host.state, desired, change)
        if call.query.get("dry_run"):
            return await planned(call, change)

        async def act() -> Reply:
            try:
                outcome = await self._host.submit(change, call.principal.actor) if change.keys else await self._repair()
            except NvmuserError as error:
                raise spec.explain(error) from error
            return Reply(_outcome(outcome, sorted(map(str, change.keys))))

        return await in_background(self._operations, call, "apply", act)

    async def _repair(self) -> Outcome:
        found = await self._host.ask("reconcile")
        await self._host.look()
        return Outcome.from_json(found)

    async def reconcile(self, call: Call) -> Reply:
        async def act() -> Reply:
            return Reply(_outcome(await self._repair(), []))

        return await in_background(self._operations, call, "reconcile", act)

    async def events(self, call: Call) -> Reply | Response:
        after = call.query.get("after")
        if after is None and (last := call.query.get("last")) is not None:
            _, newest = await asyncio.to_thread(self._host.store.event_bounds)
            after = max(0, newest - last)
        if not call.query.get("watch"):
            found = await asyncio.to_thread(self._host.store.events, after or 0, call.query["limit"] + 1)
            more = len(found) > call.query["limit"]
            page = found[: call.query["limit"]]
            return Reply({"items": [one.to_json() for one in page], "next": str(page[-1].id) if more else None})
        if (said := call.header("last-event-id")).isdigit() and len(said) < 19:
            after = int(said)

        async def valid() -> bool:
            try:
                known = await self._host.credentials()
                auth.identify(call.request.state.peer, call.request.headers, known)
            except Problem:
                return False
            return True

        stream = self._watching.stream(after, valid)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    async def statistics(self, call: Call) -> Reply:
        found = await counted(self._host)
        names = sorted(name for name in found if name > call.query.get("after", ""))
        page = names[: call.query["limit"]]
        return Reply(
            {"items": [found[name].to_json() for name in page], "next": page[-1] if len(names) > len(page) else None}
        )

    async def reactors(self, call: Call) -> Reply:
        async with control.spdk(self._host.state) as targets:
            found = await asyncio.gather(*map(reactors, targets.values()))
        items = [{"target": name, **asdict(one)} for name, some in zip(targets, found, strict=True) for one in some]
        return Reply({"items": items, "next": None})

    async def guests(self, call: Call) -> Reply:
        records = await asyncio.to_thread(registry(self._host.state).list)
        desired = await self._host.desired()
        sockets = {str(self._host.state.socket(one.name)): one.name for one in desired.controllers()}
        items = [
            {
                "name": one.name, "pid": one.pid, "running": one.running, "cpus": one.cpus, "memory": one.memory,
                "controllers": [sockets[path] for path in one.sockets if path in sockets],
            }
            for one in records
        ]  # fmt: skip
        return Reply({"items": items, "next": None})

    async def hosts(self, call: Call) -> Reply:
        settings = await asyncio.to_thread(FleetSettings.load, self._host.state)
        if settings is None:
            return Reply({"items": [], "next": None})
        from nvmuser.fleet import overview  # etcd's protocol is an extra

        return Reply({"items": (await overview.document(settings))["hosts"], "next": None})

    async def operations(self, call: Call) -> Reply:
        return Reply({"items": [one.to_json() for one in self._operations.all()], "next": None})

    async def operation(self, call: Call) -> Reply:
        one = self._operations.get(call.path["id"])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(one.finished.wait(), call.query.get("wait", 0) or 0.001)
        return Reply(one.to_json())

    async def restart(self, call: Call) -> Reply:
        name, rolling = call.path["name"], bool(call.query.get("rolling"))
        (await self._host.desired()).target(name)

        async def act(one: Operation) -> Any:
            moved = await self._host.ask("restart", {"target": name, "rolling": rolling})
            return {"moved": moved}

        return accepted(self._operations.begin(f"restart target {name}", call.principal.name, act))

    async def move(self, call: Call) -> Reply:
        name, to = call.path["name"], call.query.get("to")
        if not to:
            raise UsageError("to: name the target, as ?to=NAME")
        changes = moves(await self._host.desired(), [name], to)

        async def act(one: Operation) -> Any:
            for change in changes:
                await self._host.submit(change, call.principal.actor)
                one.done += 1
            return {"moved": len(changes)}

        what = f"move controller {name} to target {to}"
        return accepted(self._operations.begin(what, call.principal.name, act, max(1, len(changes))))


def _outcome(outcome: Outcome, changed: list[str]) -> dict[str, Any]:
    found = outcome.to_json()
    return {"changed": changed} | {name: found[name] for name in ("calls", "pending", "problems")}


async def counted(host: Host) -> dict[str, Statistics]:
    """What every volume has been asked to do, by name."""
    desired = await host.desired()
    async with control.spdk(host.state) as targets:
        found = await asyncio.gather(*(collect(rpc, on(desired, name)) for name, rpc in targets.items()))
    return {volume: statistics for one in found for volume, statistics in one.items()}
