"""libvirt's hook without libvirt: which domains concern it, claims, and why a domain does not start."""

from __future__ import annotations

import asyncio
import contextlib
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cli_run import Run, ok
from click.testing import CliRunner

from nvmuser.cli.main import cli
from nvmuser.errors import ConflictError, NotFoundError, TargetError, UsageError
from nvmuser.guest import GuestSpec, libvirt, libvirt_hook
from nvmuser.guest.libvirt_hook import Domain
from nvmuser.paths import StateDir
from nvmuser.supervisor import occupancy


@pytest.fixture
def state(run: Run, tmp_path: Path) -> StateDir:
    """A deployment with the controllers `a` and `b`, of which nothing runs."""
    for name in "ab":
        ok(run("volume", "create", name, "--size", "1M"))
        ok(run("controller", "create", name, "--attach", name))
    state = StateDir(tmp_path / "st")
    state.run.mkdir(exist_ok=True)
    return state


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """As if they were served; may be changed."""
    status: dict[str, Any] = {"target": {"ready": True}, "guests": []}

    async def ask(_state: StateDir, _method: str, **_options: Any) -> dict[str, Any]:
        return status

    @contextlib.asynccontextmanager
    async def supervisor(_state: StateDir) -> AsyncIterator[Any]:
        class Client:
            async def call(self, _method: str) -> dict[str, Any]:
                return status

        yield Client()

    monkeypatch.setattr(libvirt_hook.control, "ask", ask)
    monkeypatch.setattr(libvirt_hook.control, "supervisor", supervisor)
    monkeypatch.setattr(libvirt_hook, "answers", lambda path: True)
    monkeypatch.setattr(occupancy, "_LEAVING", 0)
    return status


def domain(state: StateDir, name: str, *controllers: str) -> Domain:
    return Domain(name, f"uuid-of-{name}", state, controllers)


def xml(state: StateDir, *controllers: str) -> str:
    spec = GuestSpec(sockets=tuple(state.socket(name) for name in controllers))
    metadata = libvirt_hook.metadata(state, controllers)
    image = Path("/image.vmdk")
    text = libvirt.domain(spec, name="box", hugepages=False, kvm=False, no_migration=image, metadata=metadata)
    root = ET.fromstring(text)
    ET.SubElement(root, "uuid").text = "uuid-of-box"
    return ET.tostring(root, encoding="unicode")


def prepare(domain: Domain) -> None:
    asyncio.run(libvirt_hook.prepare(domain, wait=0))


def test_what_a_domain_says_comes_back(state: StateDir) -> None:
    assert libvirt_hook.parse(xml(state, "a", "b")) == domain(state, "box", "a", "b")
    assert libvirt_hook.parse("<domain><name>other</name></domain>") is None


@pytest.mark.parametrize(
    "controllers",
    [
        "",
        "<n:controller/>",
        '<n:controller name="a"/><n:controller name="a"/>',
    ],
)
def test_malformed_metadata_keep_a_domain_from_starting(controllers: str) -> None:
    text = f'<domain><metadata><n:controllers xmlns:n="urn:nvmuser:libvirt:1">{controllers}</n:controllers></metadata>'
    with pytest.raises(UsageError):
        libvirt_hook.parse(f"{text}</domain>")
    with pytest.raises(UsageError, match="no XML"):
        libvirt_hook.parse(text)


def test_two_domains_do_not_have_the_same_controller(state: StateDir, served: dict[str, Any]) -> None:
    box, other = domain(state, "box", "a", "b"), domain(state, "other", "b")
    prepare(box)
    prepare(box)  # libvirt had died between
    assert dict(libvirt_hook.claims(state)) == {"a": "box", "b": "box"}
    with pytest.raises(ConflictError, match="controller b is domain box's"):
        prepare(other)
    libvirt_hook.release(other)  # which libvirt calls then
    assert dict(libvirt_hook.claims(state)) == {"a": "box", "b": "box"}
    libvirt_hook.release(box)
    prepare(other)
    assert dict(libvirt_hook.claims(state)) == {"b": "other"}


def test_a_domain_that_fails_keeps_nothing(state: StateDir, served: dict[str, Any]) -> None:
    served["guests"] = [{"controller": "b", "pid": 4711}]
    with pytest.raises(ConflictError, match=r"controller b serves another guest already \(process 4711\)"):
        prepare(domain(state, "box", "a", "b"))
    assert list(libvirt_hook.claims(state)) == []


def test_a_claim_does_not_outlive_the_machine(state: StateDir, served: dict[str, Any]) -> None:
    prepare(domain(state, "box", "a"))
    (state.run / "claims/a").unlink()
    (state.run / "claims/a").symlink_to("uuid-of-box:another-boot:box")
    assert list(libvirt_hook.claims(state)) == []
    prepare(domain(state, "other", "a"))
    assert dict(libvirt_hook.claims(state)) == {"a": "other"}


def test_why_a_domain_does_not_start(state: StateDir, served: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match="no controller c"):
        prepare(domain(state, "box", "a", "c"))
    monkeypatch.setattr(libvirt_hook, "answers", lambda path: path.parent.name != "b")
    with pytest.raises(TargetError, match="controller b is not served"):
        prepare(domain(state, "box", "a", "b"))
    served["target"]["ready"] = False
    with pytest.raises(TargetError, match="is not ready"):
        prepare(domain(state, "box", "a"))
    assert list(libvirt_hook.claims(state)) == []


def test_the_command(state: StateDir, tmp_path: Path) -> None:
    """As libvirt calls it: its words, the domain on stdin; what is none of ours has no effect and no output."""
    run = CliRunner()

    def hook(text: str, *words: str) -> Any:
        return run.invoke(cli, ["guest", "libvirt-hook", "box", *words], input=text, standalone_mode=False)

    for text, *words in (
        (xml(state, "a"), "started", "begin", "-"),
        ("<domain/>", "prepare", "begin", "-"),
        (xml(state, "a"), "release", "end", "-"),
    ):
        result = hook(text, *words)
        assert (result.exception, result.output) == (None, "")
    result = hook(xml(state, "a"), "prepare", "begin", "-", "--wait", "0")
    assert isinstance(result.exception, TargetError)
    assert "the target is not running" in str(result.exception)


def test_the_printed_domain_names_its_controllers(run: Run, state: StateDir) -> None:
    _, text, _ = run("guest", "qemu-args", "a", "b", "--libvirt", "--memory", "1G")  # and notes that nobody serves them
    found = libvirt_hook.parse(text)
    assert found is not None
    assert (found.state, found.controllers) == (state, ("a", "b"))
