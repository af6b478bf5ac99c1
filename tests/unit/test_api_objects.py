"""What the API declares is what the command line would have declared, and in the same words where it cannot be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from api_world import ApiWorld, api_world

from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.supervisor import control


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[ApiWorld]:
    async with api_world(tmp_path) as world:
        yield world


async def test_the_life_of_a_volume(api: ApiWorld) -> None:
    client = api.client("operator")
    made = await client.post("/v1/volumes", json={"name": "a", "size": "1M"})
    assert made.status_code == 201, made.text
    assert made.headers["location"] == "/v1/volumes/a"
    shown = await client.get("/v1/volumes/a")
    assert shown.json()["spec"] == made.json()["spec"]
    assert shown.json()["spec"]["size"] == 1 << 20
    assert shown.headers["etag"] == made.headers["etag"] == f'"{shown.json()["revision"]}"'
    grown = await client.patch("/v1/volumes/a", json={"size": "2M"})
    assert grown.json()["spec"]["size"] == 2 << 20
    assert grown.headers["etag"] != made.headers["etag"]
    assert grown.json()["spec"]["uuid"] == made.json()["spec"]["uuid"]
    limited = await client.patch("/v1/volumes/a", json={"limits": {"iops": 1000}})
    assert limited.json()["spec"]["limits"] == {"iops": 1000}
    free = await client.patch("/v1/volumes/a", json={"limits": None})
    assert "limits" not in free.json()["spec"]
    assert (await client.delete("/v1/volumes/a")).status_code == 400
    assert (await client.delete("/v1/volumes/a?wipe=true")).json() == {"deleted": "a"}
    assert (await client.get("/v1/volumes/a")).status_code == 404


async def test_put_makes_it_what_the_body_says_again_and_again(api: ApiWorld) -> None:
    client, body = api.client("operator"), {"size": "1M", "limits": {"mbps": 5}}
    assert (await client.put("/v1/volumes/a", json=body)).status_code == 201
    first = await client.put("/v1/volumes/a", json=body)
    assert first.status_code == 200
    assert len(api.changes()) == 1
    after = await client.put("/v1/volumes/a", json={"size": "1M"})
    assert "limits" not in after.json()["spec"]
    assert after.json()["spec"]["uuid"] == first.json()["spec"]["uuid"]
    assert (await client.put("/v1/volumes/a", json=after.json()["spec"])).status_code == 200


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
async def test_only_the_revision_that_is_known(api: ApiWorld, method: str) -> None:
    client = api.client("operator")
    old = (await client.post("/v1/volumes", json={"name": "a", "size": "1M"})).headers["etag"]
    new = (await client.patch("/v1/volumes/a", json={"size": "2M"})).headers["etag"]
    arguments: dict[str, Any] = {} if method == "DELETE" else {"json": {"size": "4M"}}
    path = "/v1/volumes/a?wipe=true" if method == "DELETE" else "/v1/volumes/a"
    refused = await client.request(method, path, headers={"If-Match": old}, **arguments)
    assert (refused.status_code, refused.json()["code"]) == (412, "stale")
    assert (await client.request(method, path, headers={"If-Match": new}, **arguments)).status_code == 200


async def test_of_two_that_know_the_same_revision_one_wins(api: ApiWorld) -> None:
    client = api.client("operator")
    known = (await client.post("/v1/volumes", json={"name": "a", "size": "1M"})).headers["etag"]
    answers = await asyncio.gather(
        *(client.patch("/v1/volumes/a", json={"limits": {"mbps": n}}, headers={"If-Match": known}) for n in (1, 2, 3))
    )
    assert sorted(answer.status_code for answer in answers) == [200, 412, 412]


async def test_the_same_words_as_the_command_line(api: ApiWorld) -> None:
    client = api.client("operator")
    await client.post("/v1/volumes", json={"name": "a", "size": "1M"})
    refused = await client.post("/v1/volumes", json={"name": "a", "size": "1M"})
    assert refused.status_code == 409
    assert refused.json() == {
        "type": "about:blank", "title": "Not possible as things are", "status": 409, "code": "conflict",
        "detail": "volume a: exists already; choose another name",
    }  # fmt: skip
    wrong = await client.post("/v1/controllers", json={"name": "c", "namespaces": [{"volume": 3}]})
    assert (wrong.status_code, wrong.json()["pointer"]) == (400, "/namespaces/0/volume")
    assert wrong.json()["detail"] == "controller.namespaces[0].volume: expected str, got 3"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"a"', b"\xff", b'{"name": "a", "size": NaN}', b'{"name": "a\\u0000"}',
        b'{"name": "\\ud800", "size": 1}', b'{"name": "a", "size": "1M", "path": "/tmp/\\ud800"}',
        b'{"name": "a", "size": ' + b"9" * 5000 + b"}", b"[" * 100_000, b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
        b'{"name": "a", "size": 1e400}', b'{"name": "a", "size": 4611686018427387905}', b'{"name": "a", "size": -512}',
        b'{"name": "a", "size": true}', b'{"name": "a", "size": "1M", "owned": true}', b'{"name": ["a"]}',
        b'{"name": "a", "size": 512, "limits": 3}', b'{"name": "a", "size": 512, "limits": {"iops": 1e3}}',
        b'{"name": "a", "members": "ab"}', b'{"name": "a", "backend": "floppy"}', b'{"name": "a", "colour": "red"}',
    ],
)  # fmt: skip
async def test_what_is_no_volume(api: ApiWorld, body: bytes) -> None:
    answer = await api.client("admin").post("/v1/volumes", content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] == "usage"
    assert (await api.client("viewer").get("/v1/volumes")).json()["items"] == []


async def test_a_body_has_a_limit_and_a_type(api: ApiWorld) -> None:
    client = api.client("operator")
    assert (await client.post("/v1/volumes", content=bytes((1 << 20) + 1))).status_code == 413
    typed = await client.post("/v1/volumes", content=b"{}", headers={"Content-Type": "text/xml"})
    assert typed.status_code == 415


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=1001", "limit=1&limit=2", "colour=red", "after="])
async def test_parameters_are_checked(api: ApiWorld, query: str) -> None:
    assert (await api.client("viewer").get(f"/v1/volumes?{query}")).status_code == 400


async def test_pages(api: ApiWorld) -> None:
    names = [f"v{number:02}" for number in range(25)]
    await control.submit(api.state, Change(create=tuple(Volume(name, size=512) for name in names)))
    client, found, after = api.client("viewer"), [], None
    while True:
        page = (await client.get("/v1/volumes", params={"limit": 10} | ({"after": after} if after else {}))).json()
        found += [item["spec"]["name"] for item in page["items"]]
        after = page["next"]
        if after is None:
            break
    assert found == names


async def test_a_dry_run_changes_nothing(api: ApiWorld) -> None:
    client = api.client("operator")
    answer = await client.post("/v1/volumes?dry_run=true", json={"name": "a", "size": "1M"})
    assert answer.status_code == 200
    methods = [call["method"] for wave in answer.json()["calls"] for call in wave]
    assert "bdev_aio_create" in methods
    assert (await client.post("/v1/volumes?dry_run=true", json={"name": "a"})).status_code == 400
    assert api.changes() == []


async def test_attach_and_detach(api: ApiWorld) -> None:
    client = api.client("operator")
    for name in "ab":
        await client.post("/v1/volumes", json={"name": name, "size": "1M"})
    made = await client.post("/v1/controllers", json={"name": "c", "namespaces": ["a"]})
    assert made.json()["spec"]["namespaces"] == [{"volume": "a", "nsid": 1}]
    for _ in range(2):
        shown = await client.put("/v1/controllers/c/namespaces/b?nsid=5")
        assert [ns["nsid"] for ns in shown.json()["spec"]["namespaces"]] == [1, 5]
    assert (await client.get("/v1/volumes/b")).json()["status"]["used_by"] == ["controller c"]
    gone = await client.delete("/v1/controllers/c/namespaces/a")
    assert [ns["volume"] for ns in gone.json()["spec"]["namespaces"]] == ["b"]
    assert (await client.delete("/v1/controllers/c/namespaces/a")).status_code == 409


async def test_snapshots_are_listed_by_themselves(api: ApiWorld) -> None:
    client = api.client("operator")
    await client.post("/v1/volumes", json={"name": "base", "size": "1G"})
    await client.post("/v1/pools", json={"name": "p", "base": "base"})
    await client.post("/v1/volumes", json={"name": "l", "backend": "lvol", "pool": "p", "size": "8M"})
    made = await client.post("/v1/snapshots", json={"name": "s", "of": "l"})
    assert made.status_code == 201, made.text
    assert made.json()["spec"]["of"] == "l"
    assert [item["spec"]["name"] for item in (await client.get("/v1/snapshots")).json()["items"]] == ["s"]
    assert (await client.get("/v1/volumes/s")).status_code == 404
    assert (await client.post("/v1/snapshots", json={"name": "t", "of": "base"})).status_code == 400


async def test_a_whole_specification(api: ApiWorld) -> None:
    client = api.client("operator")
    text = "volumes:\n- {name: a, size: 1M}\n- {name: b, size: 1M}\n"
    applied = await client.post("/v1/spec", content=text, headers={"Content-Type": "application/yaml"})
    assert applied.json()["changed"] == ["volume/a", "volume/b"]
    whole = (await client.get("/v1/spec")).json()
    assert (await client.post("/v1/spec", json=whole)).status_code in (200, 503)
    refused = await client.post("/v1/spec", json={"volumes": [{"name": "a", "size": "1K"}]})
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert "cannot shrink" in refused.json()["detail"]
    pruned = await client.post("/v1/spec?prune=true&wipe=true", json={"volumes": [{"name": "a", "size": "1M"}]})
    assert pruned.json()["changed"] == ["volume/b"]


async def test_an_operation(api: ApiWorld) -> None:
    client = api.client("operator")
    begun = await client.post("/v1/volumes", json={"name": "a", "size": "1M"}, headers={"Prefer": "respond-async"})
    assert begun.status_code == 202
    ended = (await client.get(begun.headers["location"], params={"wait": 30})).json()
    assert (ended["state"], ended["problem"]) == ("done", None)
    assert ended["result"]["spec"]["name"] == "a"
    again = await client.post("/v1/volumes", json={"name": "a", "size": "1M"}, headers={"Prefer": "respond-async"})
    failed = (await client.get(again.headers["location"], params={"wait": 30})).json()
    assert (failed["state"], failed["problem"]["code"]) == ("failed", "conflict")
    assert (await client.get("/v1/operations/7")).status_code == 404


async def test_each_change_says_who_made_it(api: ApiWorld) -> None:
    client = api.client("operator")
    await client.post("/v1/volumes", json={"name": "a", "size": "1M"})
    await client.patch("/v1/volumes/a", json={"size": "2M"})
    created, grown = (await client.get(f"/v1/events?after={api.begun}")).json()["items"]
    assert {(event["who"], event["source"]) for event in (created, grown)} == {("token operator", "192.0.2.1")}
    assert (grown["before"]["size"], grown["after"]["size"]) == (1 << 20, 2 << 20)
    page = (await client.get(f"/v1/events?after={api.begun}&limit=1")).json()
    assert page["next"] == str(created["id"])
    assert (await client.get(f"/v1/events?after={page['next']}")).json() == {"items": [grown], "next": None}


async def test_a_watcher_sees_what_was_and_what_comes(api: ApiWorld) -> None:
    client = api.client("operator")
    await client.post("/v1/volumes", json={"name": "a", "size": "1M"})
    stream = api.app.state.watching.stream(api.begun, lambda: asyncio.sleep(0, True))
    seen: list[dict[str, Any]] = []
    async with asyncio.timeout(30):
        async for chunk in stream:
            if b"data: " not in chunk:
                continue
            seen.append(json.loads(chunk.split(b"data: ")[1]))
            if len(seen) == 1:
                # Another process changes something.
                await control.submit(api.state, Change(delete=(Key("volume", "a"),), wipe=True))
            if len(seen) == 3:
                break
    await stream.aclose()
    assert [event["action"] for event in seen] == ["create", "delete", "gone"]
    assert [event["id"] for event in seen] == [api.begun + number for number in (1, 2, 3)]
