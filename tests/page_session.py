"""Runs the blocks of a page, in one shell, and compares what is shown with what comes.

What the table replaces is replaced in the output that is shown too. A page is right if every command succeeds (or ends
with the status that the table names), and its output is the one that is shown: numbers, names of temporary files and
what stands for something (`…`, `<name>`) may differ, nothing else.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from page_blocks import ROOT, Block, Command
from page_table import Run

_LIMIT, _GRACE = 840, 30
"""Seconds for a page, and for its end where it was cut short."""
_MARK = "\x1e"
_HEAD = """
set -eu -o pipefail
umask 022
cd "$WORK"
helpers=""
# background FILE COMMAND…: what a person runs in a terminal of its own; it serves when there is the file.
background() {
    local file=$1; shift
    "$@" & helpers="$helpers $!"
    until [ -e "$file" ]; do kill -0 $!; sleep 0.1; done
}
# served COMMAND…: one that serves until it is ended; it has to say so first, and to end in order.
served() {
    "$@" >served.log 2>&1 & local server=$!
    until grep -q 'serving' served.log; do kill -0 $server || { cat served.log; return 1; }; sleep 0.1; done
    kill -TERM $server; local status=0; wait $server || status=$?
    cat served.log; [ $status = 143 ] || [ $status = 0 ]
}
"""
_VARIES = re.compile(
    r"(?P<space>\s+)|(?P<any>…|<[a-z ]+>)|(?P<temporary>/tmp/tmp\.\w+)|(?P<number>(?<![A-Za-z_\d.])\d[\d.]*)"
)
_PATTERNS = {"space": r"\s*", "any": r".*?", "temporary": r"\S+?", "number": r"[\d.]+"}


@dataclass(frozen=True)
class Step:
    """A command that was run, and what it wrote."""

    block: Block
    command: Command
    written: str


def pattern(shown: str) -> str:
    """A regular expression for what a page shows of an output."""
    found, end = "", 0
    for match in _VARIES.finditer(shown := shown.strip()):
        assert match.lastgroup
        found += re.escape(shown[end : match.start()]) + _PATTERNS[match.lastgroup]
        end = match.end()
    return found + re.escape(shown[end:])


def is_shown(shown: str, written: str) -> bool:
    """Whether the output is the one on the page; lines that are continued there are one."""
    return re.search(pattern(shown.replace("\\\n", " ")), written.replace("\\\n", " "), re.DOTALL) is not None


class Session:
    """A page in a directory of its own.

    :param values: what stands in the table as `{name}`.
    :param argv: of the shell.
    """

    def __init__(
        self, work: Path, values: dict[str, str], environment: dict[str, str], argv: Sequence[str] = ("bash",)
    ) -> None:
        self._work = work
        self._values = values
        path = f"{work / 'bin'}:{Path(sys.executable).parent}:/usr/sbin:{os.environ['PATH']}"
        self._environment = {**os.environ, "PATH": path, "WORK": str(work), "ROOT": str(ROOT), **environment}
        self._argv = argv

    def run(self, setup: str, end: str, runs: list[tuple[Block, Run]]) -> list[Step]:
        """What each command wrote. All must succeed.

        :raises AssertionError: one did not, or its output is another.
        """
        commands = [(block, run, command) for block, run in runs for command in self._commands(block, run)]
        script = self._work / "script"
        script.write_text(self._script(setup, end, commands), encoding="utf-8")
        written = self._work / "written"
        status = self._wait(script, written)
        parts = re.split(rf"{_MARK}(\d+)\n", written.read_text(encoding="utf-8", errors="replace"))
        number = int(parts[-2]) if len(parts) > 1 else -1
        if status:
            block, _, command = commands[number] if number >= 0 else (runs[0][0], None, Command("", "set-up"))
            raise AssertionError(
                f"{block.page}:{block.line}: {command.text}\nended with {status}:\n{parts[-1][-4000:]}"
            )
        steps = [
            Step(block, command, output) for (block, _, command), output in zip(commands, parts[2::2], strict=True)
        ]
        for step in steps:
            where = f"{step.block.page}:{step.block.line}: {step.command.text}"
            assert is_shown(step.command.output, step.written), (
                f"{where}\nwrites\n{step.written}\nshown:\n{step.command.output}"
            )
        return steps

    def _wait(self, script: Path, written: Path) -> int:
        """Run it in a session of its own: where pytest is interrupted or killed, what it has started is ended by it."""
        with written.open("wb") as output:
            process = subprocess.Popen(
                [*self._argv, script], cwd=self._work, env=self._environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, start_new_session=True,
            )  # fmt: skip
        try:
            return process.wait(_LIMIT)
        except BaseException:
            process.terminate()  # not killed: bash still does what is at its end
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
            raise
        finally:
            process.kill()
            process.wait()

    def _commands(self, block: Block, run: Run) -> Iterator[Command]:
        for command in block.commands() if run.wrap is None else [Command("", block.text)]:
            text, output = command.text, command.output
            for old, new in run.replaced.items():
                value = self._filled(new)
                text, output = text.replace(old, value), output.replace(old, value)
            if run.wrap is not None:
                text = self._filled(run.wrap).replace("BLOCK", text)
            yield Command(command.place, text, output)

    def _filled(self, text: str) -> str:
        for name, value in self._values.items():
            text = text.replace(f"{{{name}}}", value)
        return text

    def _script(self, setup: str, end: str, commands: list[tuple[Block, Run, Command]]) -> str:
        lines = [
            _HEAD,
            f'end_of_page() {{\n[ -z "$helpers" ] || kill $helpers 2>/dev/null || true\n{end}\n}}',
            "trap 'status=$?; end_of_page; exit $status' EXIT",
            setup,
        ]
        for number, (_, run, command) in enumerate(commands):
            lines += [shell for start, shell in run.before.items() if command.text.startswith(start)]
            lines.append(f"printf '{_MARK}%s\\n' {number}")
            if command.place:
                lines.append(f"in_{command.place}")
            if run.status:
                lines += [f"status=0; {command.text} || status=$?", f"[ $status = {run.status} ]"]
            else:
                lines.append(command.text)
        return self._filled("\n".join(lines)) + "\n"
