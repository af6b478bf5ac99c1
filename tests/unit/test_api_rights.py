"""Who may do what: for every route of the OpenAPI document."""

from __future__ import annotations

import dataclasses
import os
import re
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from api_world import ApiWorld, api_world

from nvmuser.api.app import described
from nvmuser.api.auth import Peer
from nvmuser.api.guard import HOST_FIELDS
from nvmuser.api.rate import Rate
from nvmuser.api.resources import COLLECTIONS
from nvmuser.model.objects import KINDS
from nvmuser.model.spec import SECTIONS
from nvmuser.store import Store
from nvmuser.store.credentials import ROLES, digest, new_token, of_certificate

DOCUMENT = described()
ROUTES = [
    (method.upper(), path, operation["x-role"])
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
PRIVATE = [route for route in ROUTES if route[2]]


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[ApiWorld]:
    async with api_world(tmp_path) as world:
        yield world


def filled(path: str) -> str:
    return re.sub(r"\{id\}", "1", re.sub(r"\{(?!id)\w+\}", "x", path))


def test_only_these_need_nobody() -> None:
    assert {path for _, path, role in ROUTES if not role} == {"/openapi.json", "/healthz"}


async def test_nobody_gets_in(api: ApiWorld) -> None:
    client, forged = api.client(), api.client(Authorization="Bearer nvmuser_x")
    for method, path, _ in PRIVATE:
        for one in (client, forged):
            answer = await one.request(method, filled(path))
            assert answer.status_code in (401, 429), f"{method} {path}"
            assert answer.headers["content-type"] == "application/problem+json"
    assert api.changes() == []


@pytest.mark.parametrize("role", ROLES)
async def test_each_may_what_its_role_may(api: ApiWorld, role: str) -> None:
    client = api.client(role)
    for method, path, needed in PRIVATE:
        if path == "/v1/events":
            continue
        answer = await client.request(method, filled(path))
        allowed = ROLES.index(role) >= ROLES.index(needed)
        assert (answer.status_code == 403) is not allowed, f"{role}: {method} {path}: {answer.text}"
        assert answer.status_code < 500 or answer.status_code == 503, f"{method} {path}: {answer.text}"


def test_what_changes_something_is_for_no_viewer() -> None:
    for method, path, role in PRIVATE:
        if "/tokens" in path or ("/targets" in path and method != "GET"):
            assert role == "admin"
        else:
            assert (role == "viewer") == (method == "GET"), f"{method} {path}"


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer ", "Basic YTpi", "nvmuser_", "Bearer \xe4", "bearer nvmuser_wrong"]
)
async def test_what_is_no_token(api: ApiWorld, header: str) -> None:
    answer = await api.client().get("/v1/principal", headers={"Authorization": header.encode("latin-1")})  # type: ignore[dict-item]
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_a_token_that_is_revoked_or_has_expired(api: ApiWorld) -> None:
    client = api.client("viewer")
    assert (await client.get("/v1/principal")).json() == {
        "name": "token viewer", "role": "viewer", "source": "192.0.2.1",
    }  # fmt: skip
    with Store(api.state.store) as store:
        store.remove_credential("viewer")
        token, kept = new_token("short", "viewer", 1)
        store.add_credential(type(kept)(**{**vars(kept), "expires": time.time() - 1}))
    api.tokens["short"] = token
    for one in (client, api.client("short")):
        assert (await one.get("/v1/principal")).status_code == 401


async def test_a_client_certificate(api: ApiWorld) -> None:
    with Store(api.state.store) as store:
        store.add_credential(of_certificate("host2", "operator", b"DER", 0))
    api.peer = Peer("192.0.2.2", None, digest(b"DER"))
    assert (await api.client().get("/v1/principal")).json()["name"] == "certificate host2"
    api.peer = Peer("192.0.2.2", None, digest(b"another"))
    assert (await api.client().get("/v1/principal")).status_code == 401
    # A certificate's fingerprint, which is no secret, is no token.
    with Store(api.state.store) as store:
        store.add_credential(of_certificate("host3", "admin", b"known", 0))
    api.peer = Peer("192.0.2.2")
    answer = await api.client(Authorization="Bearer known").get("/v1/principal")
    assert answer.status_code == 401


async def test_an_admin_says_who_may_and_the_log_has_no_secret(api: ApiWorld) -> None:
    admin = api.client("admin")
    made = await admin.post("/v1/tokens", json={"name": "ci", "role": "operator", "lifetime_s": 60})
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    secret = made.json()["token"]
    api.tokens["ci"] = secret
    ci = api.client("ci")
    assert (await ci.get("/v1/principal")).json()["role"] == "operator"
    assert (await admin.post("/v1/tokens", json={"name": "ci"})).status_code == 409
    listed = await admin.get("/v1/tokens")
    assert {one["name"] for one in listed.json()["items"]} == {"ci", *ROLES}
    assert (await admin.delete("/v1/tokens/ci")).json() == {"deleted": "ci"}
    assert (await ci.get("/v1/principal")).status_code == 401
    assert (await admin.delete("/v1/tokens/ci")).status_code == 404
    events = await admin.get("/v1/events?limit=1000")
    mine = [(one["action"], one["who"], one["source"]) for one in events.json()["items"] if one["name"] == "ci"]
    assert mine == [(action, "token admin", "192.0.2.1") for action in ("create", "gone")]
    for answer in (listed, events):
        assert secret not in answer.text
        assert digest(secret.encode()) not in answer.text


async def test_an_admin_lets_a_certificate_in(api: ApiWorld) -> None:
    pem = ssl.DER_cert_to_PEM_cert(b"DER")
    made = await api.client("admin").post("/v1/tokens", json={"name": "host2", "certificate": pem})
    assert (made.status_code, made.json()["kind"], "token" in made.json()) == (201, "certificate", False)
    api.peer = Peer("192.0.2.2", None, digest(b"DER"))
    assert (await api.client().get("/v1/principal")).json()["name"] == "certificate host2"


@pytest.mark.parametrize(
    "body",
    [
        {}, {"name": "A"}, {"name": "a", "role": "root"}, {"name": "a", "lifetime_s": -1}, {"name": "a", "digest": "0"},
        {"name": "a", "lifetime_s": True}, {"name": "a", "lifetime_s": 10**15}, {"name": "a", "certificate": "x"},
        {"name": "a", "certificate": "-----BEGIN CERTIFICATE-----\n\u00e4"}, [],
    ],
)  # fmt: skip
async def test_what_makes_no_token(api: ApiWorld, body: Any) -> None:
    answer = await api.client("admin").post("/v1/tokens", json=body)
    assert answer.status_code == 400, answer.text
    with Store(api.state.store) as store:
        assert {one.name for one in store.credentials()} == set(ROLES)


@pytest.mark.parametrize(("uid", "status"), [(0, 200), (os.geteuid(), 200), (65534, 401)])
async def test_the_peer_of_a_unix_socket(api: ApiWorld, uid: int, status: int) -> None:
    api.peer = Peer("unix", uid)
    answer = await api.client().get("/v1/principal")
    assert answer.status_code == status
    if status == 200:
        assert answer.json()["role"] == "admin"


BODIES: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/v1/volumes", {"name": "x", "path": "/dev/null"}),
    ("POST", "/v1/volumes", {"name": "x", "path": "/tmp/x", "size": "1M"}),
    ("PUT", "/v1/volumes/x", {"path": "/etc/passwd"}),
    ("POST", "/v1/spec", {"volumes": [{"name": "x", "path": "/etc/passwd"}]}),
    ("POST", "/v1/spec?dry_run=true", {"volumes": [{"name": "x", "path": "/etc/passwd"}]}),
    ("POST", "/v1/changes", {"create": [{"kind": "volume", "name": "x", "path": "/etc/passwd"}]}),
    ("POST", "/v1/volumes", {"name": "x", "backend": "crypt", "base": "a", "key_command": "/bin/sh"}),
    ("POST", "/v1/volumes", {"name": "x", "backend": "crypt", "base": "a", "key_file": "/etc/shadow"}),
    ("POST", "/v1/clusters", {"name": "x", "conf": "/etc/shadow"}),
    ("POST", "/v1/clusters", {"name": "x", "keyring": "/etc/shadow"}),
    ("POST", "/v1/spec", {"target": {"profile": "eco"}}),
    ("POST", "/v1/remotes", {
        "name": "r", "nqn": "nqn.2026-11.org.example:a", "paths": [{"address": "127.0.0.1"}],
        "dhchap_key": "/etc/shadow",
    }),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body"), BODIES)
async def test_files_of_the_host_are_for_admins(api: ApiWorld, method: str, path: str, body: dict[str, Any]) -> None:
    answer = await api.client("operator").request(method, path, json=body)
    assert answer.status_code == 403, answer.text
    assert "admin" in answer.json()["detail"]


def test_no_field_of_the_hosts_is_forgotten() -> None:
    """A field that is new and is called so is either one of the host's, or named here."""
    ours = {("volume", "key_check"), ("remote", "paths"), ("target", "profile")}
    for name, kind in KINDS.items():
        for field in dataclasses.fields(kind):
            if re.search(r"path|file|command|conf|key|exec|dir|script", field.name) and (name, field.name) not in ours:
                assert field.name in HOST_FIELDS.get(name, ()), f"{name}.{field.name}"


def test_every_section_has_a_collection() -> None:
    assert set(COLLECTIONS) == set(SECTIONS)


async def test_a_link_leads_nobody_out(api: ApiWorld) -> None:
    api.state.volumes.mkdir(parents=True)
    (api.state.volumes / "link").symlink_to("/etc/passwd")
    inside = {"name": "x", "path": str(api.state.volumes / "link")}
    assert (await api.client("operator").post("/v1/volumes", json=inside)).status_code == 403


async def test_strangers_are_slowed_down_and_others_are_not(api: ApiWorld) -> None:
    statuses = [(await api.client().get("/v1/principal")).status_code for _ in range(120)]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    assert (await api.client("viewer").get("/v1/principal")).status_code == 200


async def test_a_token_has_a_rate(tmp_path: Path) -> None:
    async with api_world(tmp_path, per_s=0.001) as api:
        client = api.client("viewer")
        answer = await client.get("/v1/principal")
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0


def test_a_bucket_fills_again() -> None:
    now = 0.0
    rate = Rate(2.0, 2.0, lambda: now)
    assert [rate.wait("a"), rate.wait("a"), rate.wait("a"), rate.wait("b")] == [0, 0, 0.5, 0]
    now = 0.5
    assert [rate.wait("a"), rate.wait("a")] == [0, 0.5]
