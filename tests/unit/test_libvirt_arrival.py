"""libvirt's hook without libvirt, where a domain comes from another host or from a file."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from cli_run import Run, ok
from click.testing import CliRunner

from nvmuser.cli.main import cli
from nvmuser.errors import ConflictError, NvmuserError, TargetError, UsageError
from nvmuser.guest import GuestSpec, libvirt, libvirt_arrival, libvirt_hook
from nvmuser.hostfs.device_dirs import Devices
from nvmuser.paths import StateDir
from nvmuser.supervisor import control

LIBRARY = "/usr/lib/nvmuser/libvfio/libvfio.so"
NAMES = ("a", "b")


@pytest.fixture
def here(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDir:
    """Where the guest is: with the controllers `a` and `b`. Every host seems to have a target that serves all."""
    for name in NAMES:
        ok(run("volume", "create", name, "--size", "1M"))
        ok(run("controller", "create", name, "--attach", name))

    async def ask(_state: StateDir, _method: str, **_options: Any) -> dict[str, Any]:
        return {"target": {"ready": True}, "guests": []}

    monkeypatch.setattr(libvirt_hook.control, "ask", ask)
    monkeypatch.setattr(libvirt_hook, "answers", lambda path: True)
    monkeypatch.setattr(libvirt_arrival.libvfio, "find_libvfio", lambda: Path(LIBRARY))
    return StateDir(tmp_path / "st")


@pytest.fixture
def there(tmp_path: Path) -> StateDir:
    """Where it comes to."""
    state = StateDir(tmp_path / "there")
    state.run.mkdir(parents=True)
    return state


def xml(here: StateDir, there: StateDir, *, described: bool = True, library: str = LIBRARY, number: int = 1) -> str:
    """As it comes from another host, with the state directory at the same path."""
    spec = GuestSpec(
        sockets=tuple(there.socket(name) for name in NAMES),
        directories=tuple(there.devices() / str(one) for one in range(number, number + len(NAMES))),
    )
    metadata = libvirt_hook.metadata(there, NAMES, desired=control.load(here) if described else None)
    text = libvirt.domain(
        spec, name="box", hugepages=False, kvm=False, no_migration=Path("/unused"), metadata=metadata, preload=library
    )
    root = ET.fromstring(text)
    ET.SubElement(root, "uuid").text = "uuid-of-box"
    return ET.tostring(root, encoding="unicode")


def expect(text: str) -> str:
    return asyncio.run(libvirt_arrival.expect(parsed(text), text, wait=0))


def parsed(text: str) -> libvirt_hook.Domain:
    found = libvirt_hook.parse(text)
    assert found is not None
    return found


def prepare(domain: libvirt_hook.Domain) -> None:
    asyncio.run(libvirt_hook.prepare(domain, wait=0, arriving=libvirt_arrival.take_expected(domain)))


def controllers(state: StateDir) -> dict[str, bool]:
    return {one.name: one.away for one in control.load(state).controllers()}


def test_its_controllers_are_expected_and_forgotten_when_it_does_not_come(here: StateDir, there: StateDir) -> None:
    text = xml(here, there)
    domain = parsed(text)
    assert expect(text) == ""  # everything is where it was
    assert controllers(there) == {"a": True, "b": True}
    assert [one.nqn for one in control.load(there).controllers()] == [
        one.nqn for one in control.load(here).controllers()
    ]
    prepare(domain)
    assert dict(libvirt_hook.claims(there)) == {"a": "box", "b": "box"}
    with pytest.raises(ConflictError, match="its volumes are another host's"):
        prepare(domain)  # it is expected once: this is a start like others
    asyncio.run(libvirt_arrival.forget(domain))
    assert controllers(there) == {}
    asyncio.run(libvirt_arrival.forget(domain))


def test_what_was_there_before_stays(here: StateDir, there: StateDir) -> None:
    text = xml(here, there)
    expect(text)
    (there.run / "arriving/uuid-of-box").unlink()  # as if a person had declared them
    expect(text)
    asyncio.run(libvirt_arrival.forget(parsed(text)))
    assert controllers(there) == {"a": True, "b": True}


def test_an_old_question_is_no_start(here: StateDir, there: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    text = xml(here, there)
    expect(text)
    monkeypatch.setattr(libvirt_arrival, "_SOON", -1)
    with pytest.raises(ConflictError, match="its volumes are another host's"):
        prepare(parsed(text))


def test_nothing_is_left_of_what_cannot_come(here: StateDir, there: StateDir, run: Run, tmp_path: Path) -> None:
    ok(run("--state-dir", str(there.root), "volume", "create", "b", "--size", "2M"))
    ok(run("--state-dir", str(there.root), "controller", "create", "b", "--attach", "b"))
    with pytest.raises(ConflictError, match="controller b: another one here"):
        expect(xml(here, there))
    assert controllers(there) == {"b": False}
    assert not libvirt_arrival.take_expected(parsed(xml(here, there)))


def test_the_domain_is_fitted_to_this_host(here: StateDir, there: StateDir) -> None:
    text = xml(here, there, library="/elsewhere/libvfio.so", number=7)
    fitted = expect(text)
    devices, desired = Devices(there), control.load(there)
    for name in NAMES:
        directory = devices.choose(desired.controller(name))
        assert f'"id": "nvmuser-{name}", "bus": "pcie.0", "sysfsdev": "{directory}"' in fitted.replace("&quot;", '"')
    assert LIBRARY in fitted
    assert "/elsewhere" not in fitted
    assert parsed(fitted) == parsed(text)
    assert expect(fitted) == ""


def test_a_domain_without_descriptions(here: StateDir, there: StateDir) -> None:
    """Restored from a file it needs none: its controllers are there, and their volumes closed."""
    text = xml(here, there, described=False)
    with pytest.raises(UsageError, match="controller a: the domain's metadata do not describe it"):
        expect(text)
    expect(xml(here, there))
    assert expect(text) == ""
    prepare(parsed(text))


@pytest.mark.parametrize("text", ["{", "[]", "7"])
def test_malformed_descriptions(text: str) -> None:
    inside = f'<n:controller name="a">{text}</n:controller>'
    domain = f'<domain><metadata><n:controllers xmlns:n="urn:nvmuser:libvirt:1">{inside}</n:controllers></metadata>'
    with pytest.raises(UsageError, match="does not describe one"):
        libvirt_hook.parse(f"{domain}</domain>")


def test_the_command(here: StateDir, there: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def hook(text: str, operation: str) -> tuple[str, BaseException | None]:
        words = ["guest", "libvirt-hook", "box", operation, "begin", "-", "--wait", "0"]
        result = CliRunner().invoke(cli, words, input=text, standalone_mode=False)
        return result.output, result.exception

    text = xml(here, there, number=7)
    fitted, error = hook(text, "migrate")
    assert error is None
    assert ET.fromstring(fitted).findtext("name") == "box"
    assert hook(fitted, "restore") == ("", None)
    assert hook(fitted, "prepare") == ("", None)
    assert hook(fitted, "release") == ("", None)
    assert controllers(there) == {}

    async def away(_state: StateDir, _method: str, **_options: Any) -> dict[str, Any]:
        return {"target": {"ready": False}, "guests": []}

    monkeypatch.setattr(libvirt_hook.control, "ask", away)
    _, error = hook(text, "migrate")
    assert isinstance(error, TargetError)
    assert isinstance(error, NvmuserError)
    assert controllers(there) == {}
