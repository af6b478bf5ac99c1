"""The code blocks of README and docs: what stands in them, and what is a command there and what its output."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = tuple(
    str(path.relative_to(ROOT))
    for path in (
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "nvmf_vfio/libvfio/README.md",
    )
)
_FENCE = re.compile(r"^ *```")
_PROMPT = re.compile(r"(?P<place>[a-z]*)\$ +(?P<command>.*)")


@dataclass(frozen=True)
class Command:
    """A command of a block.

    :param place: the host of its prompt (`there$ …`), or nothing.
    :param text: for the shell; may have several lines.
    :param output: as it is shown below the command.
    """

    place: str
    text: str
    output: str = ""


@dataclass(frozen=True)
class Block:
    """A block of a page, without its indentation.

    :param line: where it begins.
    """

    page: str
    line: int
    text: str

    @property
    def first(self) -> str:
        """Its first line, by which the table names it."""
        return self.text.partition("\n")[0].strip()

    def commands(self) -> list[Command]:
        """With prompts (`$ `) each command with its output; without any, all of it is one."""
        if not any(map(_PROMPT.match, self.text.splitlines())):
            return [Command("", self.text)]
        found: list[Command] = []
        for line in self.text.splitlines():
            match = _PROMPT.match(line)
            if match:
                found.append(Command(match["place"], match["command"]))
            elif line.strip():
                last = found.pop()
                found.append(Command(last.place, last.text, f"{last.output}{line}\n"))
        return found


def blocks(page: str) -> list[Block]:
    """The fenced and the indented blocks of a page, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(page, number, textwrap.dedent(lines).strip("\n")) for number, lines in _cut(text.splitlines())]


def _cut(lines: list[str]) -> Iterator[tuple[int, str]]:
    number = 0
    while number < len(lines):
        start = number
        if _FENCE.match(lines[number]):
            number += 1
            while not _FENCE.match(lines[number]):
                number += 1
            yield start + 2, "\n".join(lines[start + 1 : number])
        elif lines[number].startswith("    ") and not (number and lines[number - 1].strip()):
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                number += 1
            yield start + 1, "\n".join(lines[start:number])
            continue
        number += 1
