"""`target create`, `list`, `delete`, `drain` and `controller move`, without a target: what is wanted changes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cli_run import Run


def ok(answer: tuple[int, str, str]) -> str:
    assert (answer[0], answer[2]) == (0, ""), answer
    return answer[1]


def refused(answer: tuple[int, str, str], words: str, status: int) -> None:
    assert answer[0] == status, answer
    assert words in answer[2]
    assert answer[2].count("\n") == 1


@pytest.fixture
def filled(run: Run) -> Run:
    """Targets spdk and fast; x and y share the pool p, z has a volume of its own."""
    for words in (
        "volume create disk --size 1G",
        "pool create p --base disk",
        "volume create l --backend lvol --pool p --size 8M",
        "volume create m --backend lvol --pool p --size 8M",
        "volume create a --size 1M",
        "target create fast --profile eco",
        "controller create x --attach l",
        "controller create y --attach m",
        "controller create z --attach a",
    ):
        ok(run(*words.split()))
    return run


def where(run: Run) -> dict[str, str]:
    return {one["name"]: one["target"] for one in json.loads(ok(run("controller", "list", "--json")))}


def test_controllers_move(filled: Run) -> None:
    run = filled
    refused(run("controller", "move", "x", "--to", "fast"), "it needs pool p, and so does controller y", 1)
    refused(run("controller", "move", "z", "--to", "none"), "there is no target none; `nvmuser target create none`", 1)
    refused(run("controller", "move", "none", "--to", "fast"), "controller none: no such controller", 1)
    assert where(run) == {"x": "spdk", "y": "spdk", "z": "spdk"}
    out = ok(run("controller", "move", "x", "z", "y", "--to", "fast"))
    assert out.splitlines()[0] == "controller x moved from target spdk to fast when the target is started"
    assert where(run) == dict.fromkeys("xyz", "fast")
    assert ok(run("controller", "move", "x", "--to", "fast")).startswith("nothing to do")
    moved = json.loads(ok(run("controller", "move", "z", "--to", "spdk", "--json")))
    assert [(one["controller"], one["from"], one["to"], one["pending"]) for one in moved] == [
        ("z", "fast", "spdk", True)
    ]


def test_drain_and_delete(filled: Run) -> None:
    run = filled
    ok(run("controller", "move", "z", "--to", "fast"))
    refused(run("target", "delete", "fast"), "target fast: in use by controller z", 1)
    refused(run("target", "drain", "spdk"), "say with --to", 2)
    refused(run("target", "drain", "fast", "--to", "fast"), "that is where they are", 2)
    refused(run("target", "drain", "none"), "target none: no such target", 1)
    ok(run("target", "drain", "fast"))
    assert ok(run("target", "drain", "fast")).startswith("nothing to do")
    ok(run("target", "drain", "spdk", "--to", "fast"))
    assert where(run) == dict.fromkeys("xyz", "fast")
    ok(run("target", "drain", "fast"))
    ok(run("target", "delete", "fast"))
    refused(run("target", "delete", "fast"), "target fast: no such target", 1)
    refused(run("target", "delete", "spdk"), "the default target is always there", 2)


def test_list(filled: Run) -> None:
    found = {one["name"]: one for one in json.loads(ok(filled("target", "list", "--json")))}
    assert set(found) == {"spdk", "fast"}
    assert (found["fast"]["profile"], found["fast"]["state"], found["fast"]["pid"]) == ("eco", "not running", None)
    assert found["spdk"]["controllers"] == ["x", "y", "z"]
    assert "fast" in ok(filled("target", "list"))


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        ("target create Fast", "target name 'Fast'", 2),
        ("target create fast", "target fast: exists already", 1),
        ("target create spdk", "target spdk: exists already", 1),
        ("target create f --memory 100M", "512 or more", 2),
        ("target create f --memory 4000T", "target f: memory of 4194304000 MiB", 1),
        ("target create f --cores 9999", "target f: core 9999 may not be used here", 2),
        ("target create f --cores x", "numbers with commas", 2),
        ("controller create c --target none", "there is no target none", 1),
        ("target restart none", "the target is not running", 1),
        ("target logs --target none", "target none: no such target", 1),
    ],
)
def test_refusals(filled: Run, arguments: str, words: str, status: int) -> None:
    refused(filled(*arguments.split()), words, status)


def test_two_that_poll_have_cores_of_their_own(filled: Run) -> None:
    core = str(min(os.sched_getaffinity(0)))
    ok(filled("target", "create", "one", "--cores", core))
    refused(filled("target", "create", "two", "--cores", core), "is target one's, and both poll", 1)
    ok(filled("target", "create", "two", "--cores", core, "--profile", "eco"))


def test_specification(filled: Run, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    ok(filled("controller", "move", "z", "--to", "fast"))
    path.write_text(exported := ok(filled("export")))
    assert "targets:\n- name: fast\n  profile: eco\n" in exported
    assert ok(filled("diff", "-f", str(path), "--prune")) == ""
    path.write_text(exported.replace("target: fast", "target: spdk").replace("profile: eco", "memory: 1G"))
    assert filled("diff", "-f", str(path))[1].splitlines() == [
        "~ target fast  profile: eco → none, memory: none → 1G",
        "~ controller z  target: fast → none",
    ]
    ok(filled("apply", "-f", str(path)))
    assert where(filled)["z"] == "spdk"
    path.write_text("targets: [{profile: eco}]\n")
    refused(filled("apply", "-f", str(path)), "targets[0]: missing name", 2)
    path.write_text("target: {name: fast}\n")
    refused(filled("apply", "-f", str(path)), "listed under `targets:`", 2)


def test_a_name_that_is_too_long_for_a_socket(run: Run, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * max(1, 60 - len(str(tmp_path))))
    status, _, err = run("--state-dir", str(deep), "target", "create", "n" * 63)
    assert (status, "may have 107" in err) == (2, True), err
