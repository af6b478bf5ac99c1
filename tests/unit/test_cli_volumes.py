"""The commands of volumes and pools, on a state directory without a target."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_run import Run, ok


def first(text: str) -> str:
    return text.splitlines()[0]


@pytest.fixture
def pool(run: Run) -> None:
    """Pool `p` with clusters of 64 KiB on volume `disk`."""
    ok(run("volume", "create", "disk", "--size", "0.25G"))
    ok(run("pool", "create", "p", "--base", "disk", "--cluster-size", "64K"))


def test_the_size_of_a_new_member_that_is_rounded_up_is_printed(run: Run) -> None:
    for name in ("a", "b"):
        ok(run("volume", "create", name, "--size", "4M"))
    ok(run("volume", "create", "m", "--backend", "raid1", "--member", "a", "--member", "b"))
    said = first(ok(run("volume", "replace-member", "m", "b", "c", "--size", "4100.7K")))
    assert said.startswith("volume m: c takes the place of b, and is 4104K: rounded up from 4100.7K; `nvmuser status`")
    said = first(ok(run("volume", "replace-member", "m", "c", "d", "--size", "5M")))
    assert said.startswith("volume m: d takes the place of c; `nvmuser status`")


@pytest.mark.usefixtures("pool")
def test_a_size_that_is_rounded_up_is_printed(run: Run) -> None:
    create = ("volume", "create", "l", "--backend", "lvol", "--pool", "p", "--size")
    assert first(ok(run(*create, "1600K"))) == "volume l created, 2M: rounded up from 1600K"
    assert json.loads(ok(run("volume", "show", "l", "--json")))["size"] == 2 << 20
    assert first(ok(run("volume", "grow", "l", "2.5M"))) == "volume l has grown to 3M: rounded up from 2.5M"
    assert first(ok(run("volume", "create", "m", "--pool", "p", "--backend", "lvol", "--size", "3M"))) == (
        "volume m created"
    )
    null = ("volume", "create", "n", "--backend", "null", "--volatile", "--size", "512K")
    assert first(ok(run(*null))) == "volume n created, 1M: rounded up from 512K"


def test_a_fraction_that_is_rounded_up_is_printed(run: Run, tmp_path: Path) -> None:
    assert first(ok(run("volume", "create", "a", "--size", "1.7K"))) == "volume a created, 4K: rounded up from 1.7K"
    assert first(ok(run("volume", "create", "b", "--size", "1.5K"))) == "volume b created"
    assert first(ok(run("volume", "grow", "a", "4.1K"))) == "volume a has grown to 8K: rounded up from 4.1K"
    path = tmp_path / "spec.yaml"
    path.write_text("target: {profile: eco}\nvolumes: [{name: c, size: 1.7K}, {name: b, size: 2K}]\n")
    assert ok(run("apply", "-f", str(path))).splitlines()[:3] == [
        "created target spdk",
        "created volume c, 4K: rounded up from 1.7K",
        "changed volume b",
    ]
    assert ok(run("diff", "-f", str(path))) == ""


def test_an_encrypted_volume_is_shown_by_the_name_that_was_given(run: Run) -> None:
    made = json.loads(ok(run("volume", "create", "secret", "--size", "4M", "--encrypt", "--json")))
    assert (made["name"], made["backend"], made["base"], made["size"]) == ("secret", "crypt", "secret.sealed", 4 << 20)


def test_only_what_dies_with_the_target_is_volatile(run: Run) -> None:
    """Else it would be listed as such, and refused to controllers."""
    status, out, err = run("volume", "create", "a", "--size", "4M", "--volatile")
    assert (status, out) == (2, "")
    assert "volume a: volatile (--volatile) is for data that dies with the target" in err
    ok(run("volume", "create", "disk", "--size", "64M"))
    assert run("volume", "create", "slow", "--backend", "delay", "--base", "disk", "--volatile")[0] == 2
    ok(run("pool", "create", "p", "--base", "disk"))
    in_pool = ("--backend", "lvol", "--pool", "p", "--size", "4M")
    assert run("volume", "create", "l", *in_pool, "--volatile")[0] == 2
    ok(run("volume", "create", "l", *in_pool))
    ok(run("volume", "create", "n", "--backend", "null", "--size", "64M", "--volatile"))
    ok(run("pool", "create", "q", "--base", "n"))
    ok(run("volume", "create", "m", "--backend", "lvol", "--pool", "q", "--size", "4M", "--volatile"))


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("controllers: [{name: c, namespaces: [nothing]}]", 2),
        ("volumes: [{name: a, path: /dev/null}]", 2),
        ("volumes: [{name: a, size: 4M}, {name: b, size: 4M, path: SAME}, {name: c, size: 4M, path: SAME}]", 2),
        ("volumes: [{name: a, size: 1M}", 2),
    ],
)
def test_apply_ends_as_diff_does_where_the_file_is_wrong(run: Run, tmp_path: Path, text: str, status: int) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text.replace("SAME", str(tmp_path / "same")) + "\n")
    ends = [run(*command, "-f", str(path)) for command in (("diff",), ("apply",), ("apply", "--dry-run"))]
    assert [end[0] for end in ends] == [status] * 3
    assert len({end[2] for end in ends}) == 1


@pytest.mark.usefixtures("pool")
def test_a_specification_prints_what_it_rounds_up(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("volumes: [{name: l, backend: lvol, pool: p, size: 1600K}]\n")
    assert first(ok(run("apply", "-f", str(path)))) == "created volume l, 2M: rounded up from 1600K"
    assert ok(run("diff", "-f", str(path))) == ""


def test_the_sample_specification_runs_anywhere(run: Run) -> None:
    sample = str(Path(__file__).parents[2] / "samples" / "first.yaml")
    assert run("diff", "-f", sample)[0] == 1
    ok(run("apply", "-f", sample))
    assert ok(run("diff", "-f", sample, "--prune")) == ""
    (vm1, vm2) = json.loads(ok(run("controller", "list", "--json")))
    assert [one["volume"] for one in (*vm1["namespaces"], *vm2["namespaces"])] == ["system", "data", "trial"]


def test_more_than_there_is_is_promised_with_a_note(run: Run) -> None:
    status, _, err = run("volume", "create", "a", "--size", "4096T")
    assert (status, "or pass --thin to promise it all the same" in err) == (2, True)
    made = ok(run("volume", "create", "a", "--backend", "file", "--size", "7T", "--thin"))
    assert made.splitlines()[-1].startswith("note: file system at ")
    assert "7T promised to volumes and not written yet" in made


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
        (("--size", "1G", "--latency-us", "5"), "latency_us (--latency-us) is for delay"),
        (("--size", "1G", "--nsid", "5"), "remote_nsid (--nsid) is for remote"),
        (("--size", "1G", "--member", "a", "--member", "b"), "members (--member) is for raid1, concat"),
        (("--backend", "error", "--base", "b", "--size", "1G"), "size is for file, malloc, null, lvol"),
    ):
        status, out, err = run("volume", "create", "a", *options)
        assert (status, out) == (2, "")
        assert words in err


def test_a_file_that_was_made_goes_with_its_volume_unless_it_is_kept(run: Run, tmp_path: Path) -> None:
    given, there = tmp_path / "new.img", tmp_path / "old.img"
    there.write_bytes(bytes(1 << 20))
    ok(run("volume", "create", "new", "--path", str(given), "--size", "1M"))
    ok(run("volume", "create", "old", "--path", str(there)))
    ok(run("volume", "create", "ours", "--size", "1M"))
    ok(run("volume", "delete", "old"))
    assert there.stat().st_size == 1 << 20
    status, _, err = run("volume", "delete", "new")
    assert (status, given.exists()) == (2, True)
    assert "deletes its data" in err
    assert first(ok(run("volume", "delete", "new", "--keep-file"))) == f"volume new deleted; its file stays: {given}"
    assert given.stat().st_size == 1 << 20
    ok(run("volume", "create", "new", "--path", str(given)))  # as it is
    ok(run("volume", "delete", "ours", "--yes"))
    assert not list((tmp_path / "st/volumes").iterdir())
    assert json.loads(ok(run("export", "--json")))["volumes"][0]["path"] == str(given)


def test_export_writes_every_path_that_is_not_the_default(run: Run, tmp_path: Path) -> None:
    given = tmp_path / "mine.img"
    ok(run("volume", "create", "mine", "--path", str(given), "--size", "1M"))
    ok(run("volume", "create", "ours", "--size", "1M"))
    document = {one["name"]: one for one in json.loads(ok(run("export", "--json")))["volumes"]}
    assert document["mine"]["path"] == str(given)
    assert "path" not in document["ours"]


@pytest.mark.usefixtures("pool")
def test_what_has_no_file_keeps_none(run: Run) -> None:
    ok(run("volume", "create", "l", "--backend", "lvol", "--pool", "p", "--size", "1M"))
    status, _, err = run("volume", "delete", "l", "--keep-file", "--yes")
    assert (status, err) == (2, "nvmuser: volume l: it has no file that could be kept\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("volumes: [{name: a, size: 1X}]", "spec.yaml:1: volumes[0].size: size '1X'"),
        ("controllers: [{name: c, namespaces: [none]}]", "controllers[0]: controller c: there is no volume none"),
        ("volumes: [{name: l, backend: lvol, size: 1M, pool: none}]", "volumes[0]: volume l: there is no pool none"),
        ("snapshots: [{name: s, of: none, pool: p}]", "snapshots[0]: volume s: there is no "),
        ("volumes: [{name: a, size: 1M, pool: p}]", "volumes[0]: volume a: pool is for lvol"),
        ("volumes: [{name: a, size: 9000T}]", "volumes[0]: volume a: 9000T is more than the"),
        ("controllers: [{name: c, group: nosuchgroup}]", "there is no group nosuchgroup"),
        ("target: {cores: [100000]}", "target: core 100000 may not be used here"),
    ],
)
def test_diff_refuses_what_apply_refuses(run: Run, tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    (tmp_path / "st").mkdir()
    diff = run("diff", "-f", str(path))
    assert (diff[0], diff[1]) == (2, "")
    assert words in diff[2]
    applied = run("apply", "-f", str(path))
    assert (applied[0] in (1, 2), applied[1], words in applied[2]) == (True, "", True)
    assert not (tmp_path / "st/volumes").exists()


def test_diff_says_with_its_status_what_apply_would_do(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("volumes: [{name: a, size: 1M}]\n")
    assert run("diff", "-f", str(path))[0] == 1
    assert not (tmp_path / "st").exists()
    ok(run("apply", "-f", str(path)))
    assert run("diff", "-f", str(path))[0] == 0
    assert run("diff", "-f", str(tmp_path / "none"))[0] == 2
    status, out, _ = run("diff", "-f", str(tmp_path / "none"), "--json")
    assert (status, json.loads(out)["error"]["exit_status"]) == (2, 2)


@pytest.mark.usefixtures("pool")
def test_what_can_be_judged_without_a_target_is(run: Run) -> None:
    ok(run("volume", "create", "l", "--backend", "lvol", "--pool", "p", "--size", "2M"))
    for arguments, words in (
        (("clone", "x", "l"), "volume l is no snapshot, and only snapshots have clones"),
        (
            ("snapshot", "x", "disk"),
            "volume disk is a file volume, and only volumes in a pool or in Ceph",
        ),
        (("inflate", "l"), "volume l: it is no clone, so that there is nothing to inflate"),
        (("grow", "l", "512K"), "cannot shrink from 2M to 1M"),
    ):
        status, out, err = run("volume", *arguments)
        assert (status in (1, 2), out) == (True, "")
        assert words in err
    ok(run("volume", "snapshot", "s", "l"))
    ok(run("volume", "clone", "c", "s"))
    assert first(ok(run("volume", "inflate", "c"))) == "volume c is to be independent of its snapshot"
    assert json.loads(ok(run("volume", "show", "c", "--json")))["size"] == 2 << 20
    for key in ("c", "s", "l"):
        ok(run("volume", "delete", key, "--yes"))
    ok(run("volume", "create", "l", "--backend", "lvol", "--pool", "p", "--size", "1M"))


@pytest.mark.usefixtures("pool")
def test_sizes_are_bytes_in_json_and_short_for_people(run: Run, tmp_path: Path) -> None:
    ok(run("volume", "create", "l", "--backend", "lvol", "--pool", "p", "--size", "3M"))
    by_name = {one["name"]: one for one in json.loads(ok(run("volume", "list", "--json")))}
    assert (by_name["l"]["size"], by_name["l"]["allocated"]) == (3 << 20, None)
    assert (by_name["disk"]["size"], by_name["disk"]["allocated"]) == (256 << 20, 0)
    exported = {one["name"]: one for one in json.loads(ok(run("export", "--json")))["volumes"]}
    assert exported["l"]["size"] == 3 << 20
    (pool,) = json.loads(ok(run("pool", "list", "--json")))
    assert (pool["cluster_size"], pool["free"], pool["volumes"]) == (64 << 10, None, ["l"])
    assert "only it knows how large they are" in ok(run("pool", "list"))
    assert "256M" in ok(run("volume", "list"))
    path = tmp_path / "spec.json"
    path.write_text(ok(run("export", "--json")))
    assert ok(run("diff", "-f", str(path), "--prune")) == ""
    path.write_text(ok(run("export")))
    assert ok(run("diff", "-f", str(path), "--prune")) == ""
    assert "size: 3M" in path.read_text()


def test_which_device_a_volume_is_in_a_guest(run: Run) -> None:
    uuid = json.loads(ok(run("volume", "create", "a", "--size", "1M", "--json")))["uuid"]
    ok(run("controller", "create", "c", "--attach", "a"))
    device = f"/dev/disk/by-id/nvme-uuid.{uuid}"
    assert f"device       {device}\n" in ok(run("volume", "show", "a"))
    assert f"namespace 1    a, 1M, {device}\n" in ok(run("controller", "show", "c"))


def test_what_people_read_is_no_python(run: Run, tmp_path: Path) -> None:
    ok(run("volume", "create", "logs", "--size", "1M"))
    limited = ok(run("volume", "limit", "logs", "--iops", "1000", "--read-mbps", "5"))
    assert first(limited) == "volume logs is limited to 1000 IOPS, 5 MiB/s read"
    shown = ok(run("volume", "show", "logs"))
    assert "limits       iops 1000, read_mbps 5\n" in shown
    assert "volatile     no\n" in shown
    path = tmp_path / "spec.yaml"
    path.write_text("volumes: [{name: logs, size: 2M}]\n")
    assert run("diff", "-f", str(path))[1] == "~ volume logs  size: 1M → 2M, limits: iops 1000, read_mbps 5 → none\n"
    assert first(ok(run("volume", "limit", "logs"))) == "volume logs is without limits"
    path.write_text("volumes: [{name: logs, size: 1M}]\n")
    assert ok(run("apply", "-f", str(path))) == "nothing to do; the target is not running\n"


def test_two_that_want_the_same_are_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    ok(run("volume", "create", "a", "--path", str(path)))
    status, _, err = run("volume", "create", "b", "--path", str(path))
    assert (status, err) == (1, f"nvmuser: volume b: its path, {path}, is volume a's already\n")


def test_a_remote_is_judged_and_pending_without_a_target(run: Run) -> None:
    create = ("remote", "create", "s", "--path", "10.0.0.1", "--nqn")
    status, out, err = run(*create, "foo")
    assert (status, out) == (2, "")
    assert err == "nvmuser: remote s: NQN 'foo' is not of the form nqn.yyyy-mm.domain:name\n"
    assert first(ok(run(*create, "nqn.2014-08.org.nvmexpress:uuid:0f1e2d3c-4b5a-4697-8879-6a5b4c3d2e1f"))) == (
        "remote s declared"
    )
    made = json.loads(ok(run("volume", "create", "v", "--size", "1M", "--json")))
    assert made["pending"] is True
