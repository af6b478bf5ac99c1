"""Certificates that are wrong, expired, of another authority: one clear line each, and nobody gets in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from etcd_server import Certificates, Etcd, running

from nvmuser.errors import FleetUnavailable, NvmuserError, SetupError
from nvmuser.fleet.etcd.client import Client
from nvmuser.fleet.etcd.connection import Connection
from nvmuser.fleet.etcd.tls import Tls


@dataclass
class World:
    etcd: Etcd
    ours: Certificates
    others: Certificates
    admin: Tls


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("tls")
    ours, others = Certificates(directory / "ours"), Certificates(directory / "others")
    with running(directory / "etcd", certificates=ours, server=ours.issue("server")) as etcd:
        yield World(etcd, ours, others, Tls(ours.ca, *ours.issue("admin")))


async def refusal(url: str, tls: Tls | None) -> NvmuserError:
    with pytest.raises(NvmuserError) as caught:
        async with Connection([url], tls, deadline=0.3) as connection:
            await Client(connection).get("a")
    assert "\n" not in str(caught.value)
    return caught.value


async def test_the_right_certificate(world: World) -> None:
    async with Connection([world.etcd.url], world.admin) as connection:
        assert await Client(connection).version()


async def test_a_certificate_of_another_authority(world: World) -> None:
    error = await refusal(world.etcd.url, Tls(world.ours.ca, *world.others.issue("stranger")))
    assert isinstance(error, FleetUnavailable)
    assert "refuses our certificate" in str(error)


async def test_an_etcd_of_another_authority(world: World) -> None:
    error = await refusal(world.etcd.url, Tls(world.others.ca, *world.others.issue("stranger")))
    assert "its certificate is refused: " in str(error)


async def test_no_certificate(world: World) -> None:
    error = await refusal(world.etcd.url.replace("https", "http"), None)
    assert isinstance(error, FleetUnavailable)


async def test_an_expired_certificate(world: World) -> None:
    error = await refusal(world.etcd.url, Tls(world.ours.ca, *world.ours.issue("old", expired=True)))
    assert isinstance(error, SetupError)
    assert "old.pem: expired on 20" in str(error)


async def test_an_etcd_whose_certificate_has_expired(world: World, tmp_path: Path) -> None:
    old = world.ours.issue("oldserver", expired=True)
    with running(tmp_path, certificates=world.ours, server=old) as etcd:
        assert "its certificate is refused: certificate has expired" in str(await refusal(etcd.url, world.admin))


async def test_an_etcd_of_another_name(world: World) -> None:
    error = await refusal(world.etcd.url.replace("127.0.0.1", "127.0.0.2"), world.admin)
    assert "127.0.0.2" in str(error)


@pytest.mark.parametrize(
    ("field", "content", "said"),
    [
        ("cert", None, "No such file"),
        ("key", None, "No such file"),
        ("ca", None, "No such file"),
        ("ca", "nothing", "no certificate of an authority"),
        ("cert", "nothing", "not a key in PEM for"),
        ("key", "other", "is not the key of"),
    ],
)
async def test_files_that_are_not_what_they_should_be(
    world: World, tmp_path: Path, field: str, content: str | None, said: str
) -> None:
    path = tmp_path / field
    if content == "other":
        path = world.ours.issue("another")[1]
    elif content:
        path.write_text(content)
    files = {name: getattr(world.admin, name) for name in ("ca", "cert", "key")} | {field: path}
    error = await refusal(world.etcd.url, Tls(**files))
    assert isinstance(error, SetupError)
    assert said in str(error)
    assert str(path) in str(error)
