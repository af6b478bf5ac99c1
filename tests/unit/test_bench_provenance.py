"""The origin in a result: the commit, the machine, the guests' memory."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_bench_analysis import HEADER, comparison

from nvmuser.bench.measure import environment, versions
from nvmuser.bench.report import compare_page
from nvmuser.toolchain import Spdk, recipe


def git(directory: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, *words], cwd=directory, check=True, capture_output=True)


def test_the_commit_is_that_of_the_files_own_checkout(tmp_path: Path) -> None:
    assert versions.commit(tmp_path) is None
    package, venv = tmp_path / "package", tmp_path / "venv"
    package.mkdir(), venv.mkdir()
    (package / "x").write_text("1")
    (venv / "x").write_text("1")
    git(tmp_path, "init")
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "-m", "x")
    found = versions.commit(package)
    assert found is not None
    assert len(found) == 40
    (package / "x").write_text("2")
    assert versions.commit(package) == f"{found}+"
    assert versions.commit(venv) is None, "installed beside another project"


def test_patches_are_those_of_set_ups_build() -> None:
    current = recipe.load()
    assert versions.patches(Spdk(Path(f"/cache/spdk-{current.version}-{current.key}"), "26.01")) == current.key
    assert versions.patches(Spdk(Path("/usr/local"), "26.01")) is None


@pytest.mark.parametrize(("path", "kind"), [("/", "ext4"), ("/mnt", "xfs"), ("/mnt/a b/c", "tmpfs"), ("/mnt2", "ext4")])
def test_the_nearest_mount_tells_the_file_system(tmp_path: Path, path: str, kind: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/a rw\n"
        "2 1 0:9 / /mnt\\040x rw - proc none rw\n"
        "3 1 8:2 / /mnt rw shared:2 - btrfs /dev/b rw\n"
        "4 1 8:2 / /mnt rw shared:2 - xfs /dev/b rw\n"
        "5 4 0:8 / /mnt/a\\040b rw - tmpfs none rw\n"
    )
    assert environment.file_system(Path(path), mounts) == kind


@pytest.mark.parametrize(
    ("guest", "words"),
    [
        ({"guest": {"hugepages": True}}, "of all guests and targets"),
        ({"guest": {"hugepages": False}}, "none used: 4 KiB pages"),
        ({}, "1024 MiB on the machine, whether used is not recorded"),
    ],
)
def test_facts_tell_a_virtual_machine_and_hugepages_as_used(guest: dict[str, Any], words: str) -> None:
    one = comparison({"endpoint": [1.0]})
    machine: dict[str, Any] = {**HEADER["environment"], "hypervisor": True, "hugepages_total": 512}  # type: ignore[dict-item]
    one.header = HEADER | {"environment": machine} | guest
    facts = dict(compare_page.facts(one))
    assert facts["Hugepages"] == words
    assert facts["Host"].endswith("kernel 6.18, a virtual machine")
