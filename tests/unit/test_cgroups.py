"""What control groups still allow, as both versions of cgroups show it; and this machine's own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmuser.doctor import machine
from nvmuser.hostfs import cgroups, hugepages
from nvmuser.hostfs.hugepages import HugepagePool
from nvmuser.paths import StateDir

MIB = 1 << 20


def write(directory: Path, **files: object) -> None:
    """`_` in a name stands for the dot."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(f"{content}\n")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A process of /system.slice/nvmuser.service (version 2), and of /a/b of two hierarchies of version 1."""
    write(
        tmp_path / "proc",
        cgroup="9:name=systemd:/a\n5:pids,hugetlb:/a/b\n4:memory:/a/b\n3:cpu:/a\n0::/system.slice/nvmuser.service",
        mountinfo="\n".join(
            f"3{n} 23 0:{n} / {tmp_path}/{place} rw,relatime shared:{n} - {kind} {kind} {options}"
            for n, (place, kind, options) in enumerate(
                [
                    ("unified", "cgroup2", "rw,nsdelegate"),
                    ("memory", "cgroup", "rw,memory"),
                    ("pids,hugetlb", "cgroup", "rw,pids,hugetlb"),
                    ("cpu", "cgroup", "rw,cpu"),
                ]
            )
        ),
    )
    return tmp_path / "proc"


def test_without_limits(proc: Path, tmp_path: Path) -> None:
    for found in (cgroups.memory_left, cgroups.hugepages_left, cgroups.tasks_left):
        assert found(proc) is None
        assert found(tmp_path / "none") is None
    write(tmp_path / "unified/system.slice", memory__max="max", memory__current=7, memory__stat="anon 7")
    assert cgroups.memory_left(proc) is None


def test_version_2(proc: Path, tmp_path: Path) -> None:
    service = tmp_path / "unified/system.slice/nvmuser.service"
    write(service, memory__max="max", memory__current=7, memory__stat="inactive_file 1", pids__max=100, pids__current=7)
    assert (cgroups.memory_left(proc), cgroups.tasks_left(proc)) == (None, 93)
    write(service.parent, memory__max=5000, memory__current=2000, memory__stat="anon 1\ninactive_file 500")
    assert cgroups.memory_left(proc) == 3500
    write(service, memory__max=100, memory__current=200)
    assert cgroups.memory_left(proc) == 0
    (service / "hugetlb.2MB.max").write_text(f"{8 * MIB}\n")
    (service / "hugetlb.2MB.current").write_text(f"{2 * MIB}\n")
    assert cgroups.hugepages_left(proc) == 6 * MIB


def test_version_1(proc: Path, tmp_path: Path) -> None:
    write(
        tmp_path / "memory/a/b",
        memory__limit_in_bytes=9223372036854771712,
        memory__usage_in_bytes=100,
        memory__stat="inactive_file 1\ntotal_inactive_file 3",
    )
    assert cgroups.memory_left(proc) is None
    write(
        tmp_path / "memory/a",
        memory__limit_in_bytes=1000,
        memory__usage_in_bytes=400,
        memory__stat="inactive_file 1\ntotal_inactive_file 30",
    )
    assert cgroups.memory_left(proc) == 630
    write(tmp_path / "pids,hugetlb", pids__max=50, pids__current=20)
    assert cgroups.tasks_left(proc) == 30
    for kind, limit, used in (("", 8, 2), ("rsvd.", 6, 4)):
        (tmp_path / f"pids,hugetlb/hugetlb.2MB.{kind}limit_in_bytes").write_text(f"{limit * MIB}\n")
        (tmp_path / f"pids,hugetlb/hugetlb.2MB.{kind}usage_in_bytes").write_text(f"{used * MIB}\n")
    assert cgroups.hugepages_left(proc) == 2 * MIB


def test_a_container_sees_its_group_at_the_top_of_the_mount(tmp_path: Path) -> None:
    for root in ("/docker/abc", "/other"):
        write(
            tmp_path / "proc",
            cgroup="4:memory:/docker/abc",
            mountinfo=f"36 23 0:33 {root} {tmp_path}/memory ro - cgroup cgroup rw,memory",
        )
        write(tmp_path / "memory", memory__limit_in_bytes=10, memory__usage_in_bytes=4, memory__stat="")
        assert cgroups.memory_left(tmp_path / "proc") == 6


def test_hugepages_that_the_group_may_not_have_are_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugepages, "query_pool", lambda: HugepagePool(1024, 1024))
    monkeypatch.setattr(cgroups, "hugepages_left", lambda: 100 * MIB)
    assert hugepages.free_bytes() == 100 * MIB
    assert hugepages.why_too_few(100 * MIB) is None
    assert "the control group of this process has 100 MiB left" in str(hugepages.why_too_few(102 * MIB))


def test_doctor_names_what_the_group_has_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cgroups, "memory_left", lambda *_: 100 * MIB)
    monkeypatch.setattr(cgroups, "tasks_left", lambda: 7)
    memory, threads = machine.control_groups(StateDir(tmp_path))
    assert (memory.level, threads.level) == ("warning", "warning")
    assert "the control group has 100 MiB left" in memory.text
    assert threads.text == "the control group has 7 left"


@contextlib.contextmanager
def group() -> Iterator[Path]:
    """A memory group of version 1 of this machine, below the one of this process."""
    path = next(place for place, _ in cgroups._groups("memory", Path("/proc/self")))
    made = path / f"nvmuser-{os.getpid()}"
    made.mkdir()
    try:
        yield made
    finally:
        made.rmdir()


def test_a_real_group(tmp_path: Path) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    if os.geteuid() != 0 or " - cgroup cgroup rw,memory" not in mounts:
        pytest.skip("needs root, and a machine with version 1 of cgroups")
    script = "import sys; sys.stdin.read(); from nvmuser.hostfs import limits; print(limits.available_memory())"
    with group() as made:
        (made / "memory.limit_in_bytes").write_text(str(300 * MIB))
        with subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            (made / "cgroup.procs").write_text(str(child.pid))
            found = int(child.communicate()[0])
        assert 0 < found <= 300 * MIB
