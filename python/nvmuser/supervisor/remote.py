"""Another host in the place of a state directory: what commands ask of `control` goes to its API.

Owns what of that the API offers. A command that looks into the state directory itself is one for the host alone, and
says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvmuser.errors import UsageError
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.names import check_name
from nvmuser.model.objects import object_from_json
from nvmuser.paths import StateDir
from nvmuser.reconcile.outcome import Outcome

if TYPE_CHECKING:
    from nvmuser.client import Client
    from nvmuser.client.answers import Event
    from nvmuser.reconcile.statistics import Statistics

_HERE = Path("/nonexistent")
_HERE_ALONE = "this works on the host itself alone, without --server"
_PAGE = 1000


@dataclass(frozen=True)
class Remote(StateDir):
    """:param server: `https://host:8460`, or `unix:PATH`.

    :param token: empty where the socket says who asks.
    """

    root: Path = _HERE
    server: str = ""
    token: str = ""

    def __getattribute__(self, name: str) -> Any:
        if name == "root":  # in which every place of a state directory is
            raise UsageError(_HERE_ALONE)
        return super().__getattribute__(name)

    @contextlib.contextmanager
    def _client(self) -> Iterator[Client]:
        from nvmuser.client import Client

        with Client(self.server, self.token) as client:
            yield client

    def load(self) -> Desired:
        """What is wanted there."""
        with self._client() as client:
            objects = client.request("GET", "/v1/objects")["objects"]
        found = [object_from_json(one) for one in objects]
        return Desired({one.key: Entry(one) for one in sorted(found, key=lambda one: one.key)})

    def submit(self, change: Change) -> Outcome:
        """Change what is wanted there."""
        with self._client() as client:
            return Outcome.from_json(client.request("POST", "/v1/changes", change.to_json()))

    def plan(self, change: Change) -> list[list[dict[str, Any]]]:
        """The calls to SPDK that a change would take, in waves. Nothing is changed.

        :raises NvmuserError: the change cannot be.
        """
        with self._client() as client:
            found = client.request("POST", "/v1/changes", change.to_json(), dry_run=True)["calls"]
            return [list(wave) for wave in found]

    def events(self, lines: int, after: int | None) -> list[Event]:
        """The last so many changes, or all after the one with a number."""
        from nvmuser.client.answers import Event

        found: list[Event] = []
        with self._client() as client:
            bounds: dict[str, Any] = {"last": lines} if after is None else {"after": str(after)}
            while True:
                page = client.request("GET", "/v1/events", limit=_PAGE, **bounds)
                found += [Event(**one) for one in page["items"]]
                if page["next"] is None:
                    return found
                bounds = {"after": page["next"]}

    def watch(self, after: int) -> Iterator[Event]:
        """Changes after the one with a number, as they come; those that the host has forgotten are left out."""
        with self._client() as client:
            yield from filter(None, client.watch(after))

    def rename(self, key: Key, name: str) -> Outcome:
        """Give an object there another name."""
        from nvmuser.model.spec import SECTIONS  # and so YAML, for which no other command waits

        collection = next(section for section, kind in SECTIONS.items() if kind == key.kind)
        with self._client() as client:
            return Outcome.from_json(client.request("POST", f"/v1/{collection}/{key.name}/rename", to=name))

    def tokens(self) -> list[dict[str, Any]]:
        """Who may use the API there, without secrets."""
        with self._client() as client:
            return list(client.request("GET", "/v1/tokens")["items"])

    def create_token(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Let somebody use it. Returns what is kept, with the secret of a token, which is shown once."""
        with self._client() as client:
            return dict(client.request("POST", "/v1/tokens", dict(spec)))

    def revoke_token(self, name: str) -> None:
        """Let somebody use it no more.

        :raises UsageError: it is no name.
        """
        check_name("token", name)
        with self._client() as client:
            client.request("DELETE", f"/v1/tokens/{name}")

    def statistics(self) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Statistics]]:
        """Status, reactors, and what each volume there has been asked to do."""
        counted = self.counters()
        with self._client() as client:
            return client.request("GET", "/v1/status"), client.request("GET", "/v1/reactors")["items"], counted

    def counters(self) -> dict[str, Statistics]:
        """What each volume there has been asked to do, by name."""
        from nvmuser.reconcile.statistics import Statistics

        found: list[dict[str, Any]] = []
        after = None
        with self._client() as client:
            while True:
                page = client.request("GET", "/v1/statistics", limit=_PAGE, after=after)
                found += page["items"]
                after = page["next"]
                if after is None:
                    return {one["volume"]: Statistics.from_json(one) for one in found}

    def ask(self, method: str, params: dict[str, Any]) -> Any:
        """Call a method of the supervisor there, as far as the API has it.

        :raises UsageError: it has not.
        """
        with self._client() as client:
            match method:
                case "status":
                    return client.request("GET", "/v1/status")
                case "drift":
                    return client.request("GET", "/v1/status")["objects"]
                case "reconcile":
                    return client.request("POST", "/v1/reconcile") | {"foreign": [], "objects": []}
                case "restart" if params.get("target"):
                    path = f"/v1/targets/{params['target']}/restart"
                    begun = client.request("POST", path, rolling=bool(params.get("rolling")))
                    return client.wait(begun).result["moved"]
        raise UsageError(_HERE_ALONE)
