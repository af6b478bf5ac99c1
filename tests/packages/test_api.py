"""The API's service: installed beside the other, used over its socket, ended in good order, removed."""

from __future__ import annotations

import json

import pytest
from container import Container
from test_debian import install

pytestmark = pytest.mark.matrix

SOCKET = "/var/lib/nvmuser/run/api.sock"


def test_the_service_of_the_api(container: Container, suite: str) -> None:
    if suite == "bookworm":
        pytest.skip("Debian 12's Starlette is too old: docs/packages.md")
    container.apt("update")
    install(container, "/debs")
    container.apt("install", "/debs/nvmuser-api_0.1.0_all.deb", "curl", "python3-httpx")
    assert container.run("systemctl", "is-enabled", "nvmuser-api", check=False).strip() == "disabled"
    container.run("systemctl", "start", "nvmuser", "nvmuser-api")
    container.run("sh", "-c", f"until curl -sf --unix-socket {SOCKET} http://api/healthz; do sleep 0.1; done")
    declare(container)
    scores = container.run("systemd-analyze", "security", "--no-pager", "--threshold=40", "nvmuser", "nvmuser-api")
    assert "exposure level" in scores
    container.run("systemctl", "stop", "nvmuser-api")
    assert container.run("systemctl", "is-failed", "nvmuser-api", check=False).strip() == "inactive"
    container.apt("purge", "nvmuser-api")
    assert json.loads(container.run("nvmuser", "volume", "list", "--json"))[0]["name"] == "disk"


def declare(container: Container) -> None:
    """A volume by curl, as root, and seen by a command that asks the API."""
    body = json.dumps({"name": "disk", "size": "16M"})
    container.run("curl", "-sf", "--unix-socket", SOCKET, "--json", body, "http://api/v1/volumes")
    seen = json.loads(container.run("curl", "-sf", "--unix-socket", SOCKET, "http://api/v1/volumes/disk"))
    assert seen["spec"]["name"] == "disk"
    listed = json.loads(container.run("nvmuser", "--server", f"unix:{SOCKET}", "volume", "list", "--json"))
    assert [(volume["name"], volume["size"]) for volume in listed] == [("disk", 16 << 20)]
