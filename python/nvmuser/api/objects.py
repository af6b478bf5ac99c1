"""Endpoints of the collections: list, show, make, replace, change and take away what is declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from nvmuser.api import bodies, guard, resources, schemas
from nvmuser.api.operations import Operations, in_background
from nvmuser.api.problems import Problem
from nvmuser.api.resources import COLLECTIONS, Collection
from nvmuser.api.routing import Call, Endpoint, Parameter, Reply
from nvmuser.errors import NotFoundError, StaleError, UsageError
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.names import NAME
from nvmuser.model.objects import AnyObject, Controller, TargetSettings, Volume
from nvmuser.model.spec import merged, written
from nvmuser.reconcile.dry_run import dry_run
from nvmuser.supervisor import control

PAGE = Parameter("limit", "integer", "How many at most.", {"minimum": 1, "maximum": 1000, "default": 100})
AFTER = Parameter("after", "string", "Those after this name: `next` of the page before.")
DRY_RUN = Parameter(
    "dry_run", "boolean", "Check it, and answer the calls to SPDK that it would take. Nothing is changed."
)
FORCE = Parameter("force", "boolean", "Also when a guest that runs loses what it uses.")
WIPE = Parameter("wipe", "boolean", "Its data may be deleted too.")
KEEP_FILE = Parameter("keep_file", "boolean", "The volume's file stays.")
IF_MATCH = Parameter("If-Match", "string", "The revision that is to be changed, as `ETag` had it.", where="header")
PREFER = Parameter(
    "Prefer", "string", "`respond-async`: answer at once with an operation, which goes on.", where="header"
)


def endpoints(operations: Operations) -> list[Endpoint]:
    """Of all collections."""
    return [one for collection in COLLECTIONS.values() for one in _Objects(collection, operations).endpoints()]


class _Objects:
    """The endpoints of one collection."""

    def __init__(self, collection: Collection, operations: Operations) -> None:
        self._collection = collection
        self._operations = operations

    def endpoints(self) -> list[Endpoint]:
        name, one, role = self._collection.name, self._collection.singular, self._collection.role
        path, shown = f"/v1/{name}/{{name}}", schemas.ref(self._collection.singular, "shown")
        spec, changed = schemas.ref(one, "spec"), {200: shown, 202: schemas.ref("operation")}
        writing = (DRY_RUN, IF_MATCH, PREFER)
        forced = (*writing, FORCE)
        going = (*forced, WIPE, KEEP_FILE)
        return [
            Endpoint(
                "GET", f"/v1/{name}", self.list, f"list_{name}", f"List {name}, by name.",
                parameters=(PAGE, AFTER), results={200: schemas.page(shown)},
            ),
            Endpoint(
                "POST", f"/v1/{name}", self.create, f"create_{one}", f"Declare a {one}.", role,
                (DRY_RUN, PREFER), spec, {201: shown, **changed},
            ),
            Endpoint("GET", path, self.show, f"show_{one}", f"Show a {one}.", results={200: shown}),
            Endpoint(
                "PUT", path, self.put, f"put_{one}", f"Declare a {one}, or make it what the body says.", role,
                forced, spec, {201: shown, **changed},
            ),
            Endpoint(
                "PATCH", path, self.patch, f"change_{one}", f"Change fields of a {one} (JSON merge patch).", role,
                forced, schemas.ref(one, "patch"), changed,
            ),
            Endpoint(
                "DELETE", path, self.delete, f"delete_{one}", f"Take a {one} away.", role,
                going, None, {200: schemas.DELETED, 202: schemas.ref("operation")},
            ),
        ]  # fmt: skip

    # -- looking ---------------------------------------------------------------------------------------------

    async def list(self, call: Call) -> Reply:
        await call.host.fresh()
        desired = await call.host.desired()
        names = [name for name in self._collection.names(desired) if name > call.query.get("after", "")]
        page = names[: call.query["limit"]]
        objects = [self._collection.get(desired, name) for name in page]
        items = [resources.shown(call.host, desired, one, desired.users(one.key)) for one in objects]
        return Reply({"items": items, "next": page[-1] if len(names) > len(page) else None})

    async def show(self, call: Call) -> Reply:
        await call.host.fresh()
        return await self._shown(call, call.path["name"])

    async def _shown(self, call: Call, name: str, status: int = 200) -> Reply:
        desired = await call.host.desired()
        one = self._collection.get(desired, name)
        data = resources.shown(call.host, desired, one, desired.users(one.key))
        place = f"/v1/{self._collection.name}/{name}"
        return Reply(data, status, {"ETag": f'"{data["revision"]}"'} | ({"Location": place} if status == 201 else {}))

    # -- changing --------------------------------------------------------------------------------------------

    async def create(self, call: Call) -> Reply:
        one = self._declared(await call.host.desired(), await call.body())
        return await self._carry_out(call, one.name, lambda desired: Change(create=(one,)))

    async def put(self, call: Call) -> Reply:
        body, name = await call.body(), call.path["name"]

        def change(desired: Desired) -> Change:
            one = self._declared(desired, body, name)
            present = self._present(desired, name)
            _match(call, present)
            if present is None:
                return Change(create=(one,))
            find = {**{key: entry.object for key, entry in desired.entries.items()}, one.key: one}.get
            return self._update(desired, present, merged(present, one, find), call)

        return await self._carry_out(call, name, change)

    async def patch(self, call: Call) -> Reply:
        body, name = bodies.mapping(await call.body()), call.path["name"]

        def change(desired: Desired) -> Change:
            present = self._collection.get(desired, name)
            _match(call, present)
            section = self._collection.name
            after = bodies.declared(section, present.kind, bodies.patched(written(present), body), name)
            find = {**{key: entry.object for key, entry in desired.entries.items()}, after.key: after}.get
            return self._update(desired, present, merged(present, after, find), call)

        return await self._carry_out(call, name, change)

    async def delete(self, call: Call) -> Reply:
        name = call.path["name"]

        def change(desired: Desired) -> Change:
            present = self._collection.get(desired, name)
            _match(call, present)
            flags = {flag: call.query.get(flag, False) for flag in ("wipe", "force")}
            keep, expect = call.query.get("keep_file", False), (present,) if call.header("if-match") else ()
            return Change(delete=(present.key,), keep_files=keep, expect=expect, **flags)

        return await self._carry_out(call, name, change)

    def _declared(self, desired: Desired, body: Any, name: str = "") -> AnyObject:
        """What a body declares; of a snapshot, what it is of says the rest."""
        data = dict(bodies.mapping(body))
        if self._collection.name == "snapshots":
            source = desired.get(Key("volume", str(data.get("of", ""))))
            if isinstance(source, Volume):
                known = {"pool": source.pool, "block_size": source.block_size, "volatile": source.volatile}
                data = known | data
        one = bodies.declared(self._collection.name, self._collection.kind, data, name)
        if not self._collection.has(one):
            raise Problem(400, "usage", f"{one.key.words}: declare it under /v1/{resources.of(one).name}")
        return one

    def _present(self, desired: Desired, name: str) -> AnyObject | None:
        try:
            return self._collection.get(desired, name)
        except NotFoundError:
            return None

    @staticmethod
    def _update(desired: Desired, present: AnyObject, after: AnyObject, call: Call) -> Change:
        if isinstance(after, Controller):
            desired.check_surviving(after)
        if isinstance(after, TargetSettings) and after.key not in desired.entries:
            return Change(create=(after,)) if after != present else Change()
        return Change(update=(after,), expect=(present,), force=call.query.get("force", False))

    async def _carry_out(self, call: Call, name: str, make: Callable[[Desired], Change]) -> Reply:
        """Make a change and carry it out; what others changed meanwhile is looked at again."""
        if call.query.get("dry_run"):
            return await planned(call, make(await call.host.desired()))

        async def act() -> Reply:
            while True:
                desired = await call.host.desired()
                change = make(desired)
                guard.check(call.principal, call.host.state, desired, change)
                try:
                    if change.keys:
                        await call.host.submit(change, call.principal.actor)
                    break
                except StaleError:
                    if call.header("if-match"):
                        raise
            if change.delete:
                return Reply({"deleted": name})
            return await self._shown(call, name, 201 if change.create and not change.expect else 200)

        verb = f"{call.request.method} {call.request.url.path}"
        return await in_background(self._operations, call, verb, act)


async def planned(call: Call, change: Change) -> Reply:
    """What a change would lead to."""
    desired = await call.host.desired()
    guard.check(call.principal, call.host.state, desired, change)
    async with control.spdk(call.host.state) as targets:
        waves = await dry_run(desired, change, call.host.state, targets)
    return Reply({"dry_run": True, "calls": waves})


def _match(call: Call, present: AnyObject | None) -> None:
    """:raises Problem: it is another revision than the asker knows."""
    wanted = call.header("if-match")
    if not wanted:
        return
    known = {mark.strip().removeprefix("W/").strip('"') for mark in wanted.split(",")}
    if present is None or not known & {"*", resources.revision(present)}:
        now = f"it is at {resources.revision(present)}" if present else "there is none"
        raise Problem(412, "stale", f"somebody else has changed it: {now}")


def renaming(operations: Operations) -> list[Endpoint]:
    """Another name for an object."""
    to = Parameter("to", "string", "The new name.", {"pattern": f"^({NAME})$"})

    def endpoint(collection: Collection) -> Endpoint:
        async def rename(call: Call) -> Reply:
            one = collection.get(await call.host.desired(), call.path["name"])
            if not call.query.get("to"):
                raise UsageError("to: say the new name, as ?to=NAME")
            outcome = await call.host.rename(one.key, call.query["to"], call.principal.actor)
            return Reply(outcome.to_json())

        name, one = collection.name, collection.singular
        path, what = f"/v1/{name}/{{name}}/rename", f"Give a {one} another name; what uses it goes on."
        results: Mapping[int, Any] = {200: {"type": "object"}}
        return Endpoint("POST", path, rename, f"rename_{one}", what, collection.role, (to,), None, results)

    return [endpoint(collection) for collection in COLLECTIONS.values() if collection.name != "targets"]


def attaching(operations: Operations) -> list[Endpoint]:
    """Volumes of a controller, one by one."""
    objects = _Objects(COLLECTIONS["controllers"], operations)
    path = "/v1/controllers/{name}/namespaces/{volume}"
    shown: Mapping[int, Any] = {200: schemas.ref("controller", "shown"), 202: schemas.ref("operation")}

    def edited(call: Call, edit: Callable[[Controller], Controller]) -> Callable[[Desired], Change]:
        def change(desired: Desired) -> Change:
            present = desired.controller(call.path["name"])
            _match(call, present)
            after = edit(present)
            desired.check_surviving(after)
            return Change(update=(after,), expect=(present,), force=call.query.get("force", False))

        return change

    async def attach(call: Call) -> Reply:
        from nvmuser.model import change as changes

        volume, nsid = call.path["volume"], call.query.get("nsid", 0)

        def add(controller: Controller) -> Controller:
            there = [ns for ns in controller.namespaces if ns.volume == volume and nsid in (0, ns.nsid)]
            return replace(controller) if there else changes.attach(controller, volume, nsid)

        return await objects._carry_out(call, call.path["name"], edited(call, add))

    async def detach(call: Call) -> Reply:
        from nvmuser.model import change as changes

        volume = call.path["volume"]
        return await objects._carry_out(
            call, call.path["name"], edited(call, lambda controller: changes.detach(controller, volume))
        )

    nsid = Parameter(
        "nsid", "integer", "Number of the namespace; default: the lowest that is free.", {"minimum": 1, "maximum": 32}
    )
    common = (DRY_RUN, IF_MATCH, PREFER)
    return [
        Endpoint("PUT", path, attach, "attach", "Show a volume to a controller's guest.", "operator",
                 (*common, nsid), None, shown),
        Endpoint("DELETE", path, detach, "detach", "Show a volume no more.", "operator",
                 (*common, FORCE), None, shown),
    ]  # fmt: skip
