"""The commands of volumes and pools, on a state directory without a target."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nvmuser.cli.main import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("volume", "list")` → status, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nvmuser", "--state-dir", str(tmp_path / "st"), *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        status = end.value.code
        assert isinstance(status, int)
        return status, said.out, said.err

    return run


def ok(result: tuple[int, str, str]) -> str:
    assert result[0] == 0, result
    assert result[2] == ""
    return result[1]


def first(text: str) -> str:
    return text.splitlines()[0]


@pytest.fixture
def pool(run: Run) -> None:
    """Pool `p` with clusters of 64 KiB on volume `disk`."""
    ok(run("volume", "create", "disk", "--size", "0.25G"))
    ok(run("pool", "create", "p", "--base", "disk", "--cluster-size", "64K"))


@pytest.mark.usefixtures("pool")
def test_a_size_that_is_rounded_up_is_printed(run: Run) -> None:
    create = ("volume", "create", "l", "--backend", "lvol", "--pool", "p", "--size")
    assert first(ok(run(*create, "1600K"))) == "volume l created, 2M: rounded up from 1600K"
    assert json.loads(ok(run("volume", "show", "l", "--json")))["size"] == 2 << 20
    assert first(ok(run("volume", "grow", "l", "2.5M"))) == "volume l has grown to 2.5M, 3M: rounded up from 2560K"
    assert first(ok(run("volume", "create", "m", "--pool", "p", "--backend", "lvol", "--size", "3M"))) == (
        "volume m created"
    )
    null = ("volume", "create", "n", "--backend", "null", "--volatile", "--size", "512K")
    assert first(ok(run(*null))) == "volume n created, 1M: rounded up from 512K"


@pytest.mark.usefixtures("pool")
def test_a_specification_prints_what_it_rounds_up(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("volumes: [{name: l, backend: lvol, pool: p, size: 1600K}]\n")
    assert first(ok(run("apply", "-f", str(path)))) == "created volume l, 2M: rounded up from 1600K"
    assert ok(run("diff", "-f", str(path))) == ""


def test_names_and_sizes_that_other_tools_give(run: Run, tmp_path: Path) -> None:
    name = "pvc-0f1e2d3c-4b5a-4697-8879-6a5b4c3d2e1f"
    ok(run("volume", "create", name, "--size", "1.5Gi"))
    assert (tmp_path / "st" / "volumes" / name).stat().st_size == 3 << 29
    ok(run("controller", "create", "c", "--attach", name))


def test_a_controller_whose_socket_would_not_fit_is_refused(run: Run) -> None:
    status, out, err = run("--state-dir", "/tmp/" + "d" * 40, "controller", "create", "c" * 63)
    assert (status, out) == (2, "")
    assert "a UNIX socket's path may have 107; use a shorter name or a shorter --state-dir" in err
    assert err.count("\n") == 1


def test_options_of_another_backend_are_refused_by_name(run: Run) -> None:
    for options, words in (
        (("--size", "1G", "--pool", "p", "--remote", "r"), "pool is for lvol; this is a file volume: leave it out"),
        (("--size", "1G", "--latency-us", "5"), "latency_us is for delay"),
        (("--backend", "error", "--base", "b", "--size", "1G"), "size is for file, malloc, null, lvol"),
    ):
        status, out, err = run("volume", "create", "a", *options)
        assert (status, out) == (2, "")
        assert words in err
