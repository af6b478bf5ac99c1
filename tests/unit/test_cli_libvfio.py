"""`--via libvfio` on the command line, without a target."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nvmuser.cli import guest_qemu
from nvmuser.cli.main import main
from nvmuser.paths import StateDir

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "st")


@pytest.fixture
def run(state: StateDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("guest", "list")` → status, stdout, stderr. There are two controllers, and a library."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nvmuser", "--state-dir", str(state.root), *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, said.out, said.err

    monkeypatch.delenv("NVMUSER_QEMU", raising=False)
    monkeypatch.setattr(guest_qemu.libvfio, "preload", lambda: "LD_PRELOAD=/cache/libvfio.so:/my own.so")
    monkeypatch.setattr(guest_qemu, "use_hugepages", lambda spec: False)
    for name in ("one", "two"):
        assert run("controller", "create", name)[0] == 0
    return run


def test_the_whole_line(run: Run, state: StateDir) -> None:
    status, out, err = run("guest", "qemu-args", "two", "--via", "libvfio", "--memory", "512M")
    assert status == 0
    assert "nobody answers" in err
    first, *rest = out.split(" \\\n")
    assert first == "env 'LD_PRELOAD=/cache/libvfio.so:/my own.so' qemu-system-x86_64"
    assert rest[-1].strip() == f"-device vfio-pci,id=nvmuser-two,bus=port0,sysfsdev={state.run}/vfio/2"
    assert (state.run / "vfio/2/iommu_group").readlink().name == "2"
    assert "share=on" in out
    assert run("guest", "qemu-args", "two", "--via", "libvfio", "--memory", "512M")[1] == out


def test_as_a_list_it_can_be_run(run: Run, state: StateDir) -> None:
    status, out, _ = run("guest", "qemu-args", "one", "two", "--via", "libvfio", "--direct", "--json")
    assert status == 0
    words = json.loads(out)
    assert words[:3] == ["env", "LD_PRELOAD=/cache/libvfio.so:/my own.so", "qemu-system-x86_64"]
    sysfsdevs = [word.rpartition("sysfsdev=")[2] for word in words if "sysfsdev=" in word]
    assert sysfsdevs == [f"{state.run}/vfio-direct/1", f"{state.run}/vfio-direct/2"]


def test_what_is_refused(run: Run) -> None:
    for arguments, words in (
        (("guest", "qemu-args", "none", "--via", "libvfio"), "controller none: no such controller"),
        (("guest", "qemu-args", "one", "none"), "controller none: no such controller"),
        (("guest", "run", "--controller", "none", "--", "true"), "controller none: no such controller"),
    ):
        status, out, err = run(*arguments)
        assert (status != 0, out) == (True, "")
        assert words in err
        assert err.count("\n") == 1
