"""Which hugepages are free, and what a person is advised to do when they are too few."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvmuser.hostfs import hugepages
from nvmuser.hostfs.hugepages import PAGE, HugepagePool


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A kernel with 100 pages, 30 of them free, 10 of these reserved by a process that has not touched them yet."""
    for name, pages in (("nr_hugepages", 100), ("free_hugepages", 30), ("resv_hugepages", 10)):
        (tmp_path / name).write_text(f"{pages}\n")
    monkeypatch.setattr(hugepages, "POOL", tmp_path)
    return tmp_path


def test_reserved_pages_are_not_free(pool: Path) -> None:
    assert hugepages.query_pool() == HugepagePool(100, 20)
    assert hugepages.free_bytes() == 20 * PAGE
    assert hugepages.why_too_few(20 * PAGE) is None


def test_the_advice_keeps_the_pages_that_others_use(pool: Path) -> None:
    reason = hugepages.why_too_few(50 * PAGE)
    assert reason == "100 MiB of hugepages are needed, 40 MiB are free: sysctl vm.nr_hugepages=130"


def test_a_part_of_a_page_takes_a_whole_one(pool: Path) -> None:
    reason = hugepages.why_too_few(20 * PAGE + 1)
    assert reason is not None
    assert reason.endswith("vm.nr_hugepages=101")


def test_a_kernel_without_hugepages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hugepages, "POOL", tmp_path / "absent")
    assert hugepages.query_pool() is None
    assert hugepages.free_bytes() == 0
    assert hugepages.why_too_few(PAGE) == "this kernel has no 2 MiB hugepages"


def test_pages_without_a_mount_are_unusable(pool: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hugepages, "MOUNT", tmp_path)
    assert "mount -t hugetlbfs" in str(hugepages.why_unusable(PAGE))
    monkeypatch.setattr(hugepages.os.path, "ismount", lambda _path: True)
    assert hugepages.why_unusable(PAGE) is None
    assert "vm.nr_hugepages=101" in str(hugepages.why_unusable(21 * PAGE))


def test_the_pool_is_resized_by_a_difference(pool: Path) -> None:
    hugepages.resize_pool(7)
    hugepages.resize_pool(-2)
    assert (pool / "nr_hugepages").read_text() == "105\n"
