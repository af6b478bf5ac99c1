"""The pages that are made of the commands: complete, and such that man(1) reads them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from nvmuser.cli import reference
from nvmuser.cli.main import cli

PAGES = dict(reference.man_pages())
TEXT = reference.markdown()
COMMANDS = {" ".join(words): command for words, command in reference.walk()}


def plain(page: str) -> str:
    return page.replace("\\-", "-").replace("\\&", "").replace("\\e", "\\")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_place_with_all_options(name: str) -> None:
    words = name.split()
    page = plain(PAGES["nvmuser.1" if len(words) == 1 else f"nvmuser-{words[1]}.1"])
    assert name in page
    assert f"# {name}\n" in TEXT
    for option, _help in reference.options(tuple(words), COMMANDS[name]):
        assert f".B {option}\n" in page
        assert f"| `{option}` |" in TEXT


def test_the_first_page_lists_the_others() -> None:
    listed = {f"nvmuser-{name}.1" for name in cli.list_commands(None)}  # type: ignore[arg-type]
    assert set(PAGES) == {"nvmuser.1", *listed}
    assert all(f".B {name.removesuffix('.1')}(1)\n" in plain(PAGES["nvmuser.1"]) for name in listed)


def test_nothing_in_a_page_is_taken_for_a_request() -> None:
    requests = (".TH ", ".SH ", ".PP", ".TP", ".B ", ".BR ", ".br", ".nf", ".fi")
    for page in PAGES.values():
        for line in page.splitlines():
            assert line.startswith(requests) or not line.startswith((".", "'")), line


@pytest.mark.skipif(not shutil.which("groff"), reason="needs groff")
def test_groff_has_nothing_to_say(tmp_path: Path) -> None:
    reference.main(["man", str(tmp_path)])
    pages = sorted(tmp_path.iterdir())
    assert len(pages) == len(PAGES)
    command = ["groff", "-Kutf8", "-man", "-Tutf8", "-ww", "-z", *pages]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
