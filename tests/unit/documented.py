"""The commands of nvmuser that documents and help texts show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nvmuser.cli import reference

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
_END = {"|", "||", "&&", ";", ">", ">>", "<", "&", ")"}
_BEFORE = {"exec", "time", "env", "sudo"}
_FENCE = re.compile(r"^\s*```")
_SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")


@dataclass(frozen=True)
class Shown:
    """A command as it is shown.

    :param where: file or command, and line.
    :param words: without `nvmuser`.
    :param whole: it can be run as it is; else it is only mentioned.
    """

    where: str
    words: tuple[str, ...]
    whole: bool = True


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """Lines of code of a Markdown text, with their numbers; those that end in a backslash are joined."""
    fenced, joined, start = False, "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if _FENCE.match(line):
            fenced = not fenced
            continue
        if not (fenced or line.startswith("    ")):
            continue
        start = start or number
        joined += line.strip().removesuffix("\\")
        if not line.endswith("\\"):
            yield start, joined
            joined, start = "", 0


def inline(text: str) -> Iterator[tuple[int, str]]:
    """`nvmuser …` between backquotes in running text."""
    for number, line in enumerate(text.splitlines(), 1):
        for found in re.findall(r"`(nvmuser [a-z][^`]*)`", line):
            yield number, found


def commands(line: str) -> Iterator[tuple[str, ...]]:
    """The calls of nvmuser in a line of shell: after a prompt, in `$(…)`, behind others, without redirections."""
    text = re.sub(r"^(\$|#) ", "", line)
    if re.search(r"\w\|\w|…|\[[-A-Z]", text):
        return  # something in it stands for something else: one|another, NAME…, [OPTION]
    for inner in _SUBSTITUTION.findall(text):
        yield from commands(inner)
    for words in _simple_commands(_SUBSTITUTION.sub("x", text)):
        while words and (words[0] in _BEFORE or re.match(r"[A-Z_]+=", words[0])):
            words.pop(0)
        if words and words[0].rpartition("/")[2] == "nvmuser" and len(words) > 1:
            yield tuple(words[1:])


def _simple_commands(text: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(re.sub(r"\b[12]>", ">", text), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    try:
        for word in lexer:
            if word not in _END:
                words.append(word)
                continue
            yield words
            words = []
    except ValueError:  # a quotation over several lines
        return
    yield words


def shown() -> Iterator[Shown]:
    """All of them."""
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for lines, whole in ((blocks(text), True), (inline(text), False)):
            for number, line in lines:
                for words in commands(line):
                    yield Shown(f"{path.relative_to(ROOT)}:{number}", words, whole)
    for path, command in reference.walk():
        for text, verbatim in reference.paragraphs(command):
            for line in text.splitlines() if verbatim else ():
                for words in commands(line.strip()):
                    yield Shown(" ".join(path), words)
