"""Hugepages are reserved for a block and given back, also after an error; other users get the command to run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmuser.bench.measure import hugepage_loan
from nvmuser.bench.measure.hugepage_loan import borrowed_hugepages
from nvmuser.hostfs import hugepages
from nvmuser.hostfs.hugepages import PAGE, HugepagePool


class Kernel:
    """A kernel's file, of whose pages `used` are taken; it finds no more than `most`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self.file = directory / "nr_hugepages"
        self.file.write_text("10\n")
        self.used, self.most = 4, 100_000
        monkeypatch.setattr(hugepages, "POOL", directory)
        monkeypatch.setattr(hugepage_loan, "_mounted", contextlib.nullcontext)
        monkeypatch.setattr(hugepages, "query_pool", lambda: HugepagePool(self.pages, self.free() // PAGE))
        monkeypatch.setattr(hugepage_loan, "available_memory", lambda: 1 << 30)
        monkeypatch.setattr(hugepage_loan.os, "geteuid", lambda: 0)

    @property
    def pages(self) -> int:
        return int(self.file.read_text())

    def free(self) -> int:
        return (min(self.pages, self.most) - self.used) * PAGE


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kernel]:
    kernel = Kernel(monkeypatch, tmp_path)
    yield kernel
    assert kernel.pages == 10, "what was reserved has not been given back"


def test_what_is_free_already_is_enough(kernel: Kernel) -> None:
    with borrowed_hugepages(6 * PAGE) as lacking:
        assert lacking is None
        assert kernel.pages == 10


def test_root_gets_the_rest_reserved(kernel: Kernel) -> None:
    with contextlib.suppress(KeyError), borrowed_hugepages(50 * PAGE) as lacking:
        assert lacking is None
        assert kernel.free() == 50 * PAGE
        raise KeyError


def test_two_at_once_each_give_back_their_own(kernel: Kernel) -> None:
    first, second = borrowed_hugepages(50 * PAGE), borrowed_hugepages(70 * PAGE)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert kernel.pages == 74 - 44
    second.__exit__(None, None, None)


def test_others_get_the_command(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugepage_loan.os, "geteuid", lambda: 1000)
    with borrowed_hugepages(50 * PAGE) as lacking:
        assert lacking is not None
        assert "vm.nr_hugepages=54" in lacking


def test_not_more_than_half_of_the_memory(kernel: Kernel) -> None:
    with borrowed_hugepages(1 << 30) as lacking:
        assert lacking is not None
        assert kernel.pages == 10


def test_fragmented_memory_is_reported(kernel: Kernel) -> None:
    kernel.most = 20
    with borrowed_hugepages(50 * PAGE) as lacking:
        assert lacking is not None
        assert "fragmented" in lacking
