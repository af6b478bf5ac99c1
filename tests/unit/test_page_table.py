"""The table of code blocks: each block of README and docs is in it once, and what it names is there."""

from __future__ import annotations

import re

import pytest
from page_blocks import PAGES as FILES
from page_blocks import ROOT, Block, Command, blocks
from page_session import is_shown
from page_table import PAGES, Elsewhere, Not

ALL = [block for page in FILES for block in blocks(page)]


def entries(block: Block) -> list[str]:
    return [start for start in PAGES[block.page].blocks if block.first.startswith(start)]


def test_every_page_is_there() -> None:
    assert sorted(PAGES) == sorted(FILES)


@pytest.mark.parametrize("block", ALL, ids=lambda block: f"{block.page}:{block.line}")
def test_a_block_is_in_it_once(block: Block) -> None:
    assert len(entries(block)) == 1, f"{block.page}:{block.line}: {block.first!r} belongs into tests/page_table.py"


@pytest.mark.parametrize("page", FILES)
def test_an_entry_is_of_one_block(page: str) -> None:
    firsts = [block.first for block in blocks(page)]
    for start in PAGES[page].blocks:
        assert sum(first.startswith(start) for first in firsts) == 1, f"{page}: no block, or several, of {start!r}"


def test_what_is_not_run_here_has_its_test_or_its_reason() -> None:
    for page in PAGES.values():
        for how in page.blocks.values():
            if isinstance(how, Elsewhere):
                name, _, function = how.test.partition("::")
                assert re.search(rf"^(async )?def {function}\(", (ROOT / name).read_text(), re.MULTILINE), how.test
            elif isinstance(how, Not):
                assert how.reason


def test_most_commands_are_run() -> None:
    """The parser has not lost them."""
    assert len(ALL) > 45
    tour = next(block for block in blocks("README.md") if "target start" in block.text)
    assert [command.text for command in tour.commands()][2] == "nvmuser volume create disk --size 1G"
    assert tour.commands()[2].output == "volume disk created\n"


def test_prompts_of_two_hosts() -> None:
    block = Block("page", 1, "here$  a | b\nshown\nthere$ c")
    assert block.commands() == [Command("here", "a | b", "shown\n"), Command("there", "c")]


@pytest.mark.parametrize(
    ("shown", "written", "right"),
    [
        ("ready after 1.6 s, core 1; /tmp/tmp.wJ4kTqnD2e", "ready after 12 s, core 0; /x/y", True),
        ("[  0.4 s] moving", "before\n[10.4 s] moving\n", True),
        ("volume disk created", "volume disk changed", False),
        ("disk1 is there", "disk2 is there", False),
        ("a=…/c <some name>", "a=/b/c d", True),
        ("first\nthird", "first\nsecond\nthird", False),
        ("one \\\n  two", "one two", True),
    ],
)
def test_what_may_differ(shown: str, written: str, right: bool) -> None:
    assert is_shown(shown, written) is right
