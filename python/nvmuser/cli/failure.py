"""How a command ends that did not succeed: one line on stderr, with `--json` one object on stdout, an exit status.

Owns the one place where an exception becomes something that a person or a program reads (docs/cli.md).
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from nvmuser.errors import NvmuserError, UsageError
from nvmuser.hostfs.permissions import denied

INTERRUPTED = 130
"""128 + SIGINT, as a shell has it."""

_BROKEN_PIPE = 141
"""128 + SIGPIPE: what a program has that does not catch it."""


class OutputError(Exception):
    """Standard output could not be written. No OSError: click would take a broken pipe for itself."""


EXPECTED = (NvmuserError, OutputError, click.ClickException, click.Abort, KeyboardInterrupt, OSError)
"""What a command may end with. Anything else is a defect, and its traceback is wanted."""


@dataclass(frozen=True)
class Failure:
    """:param kind: for programs; see `NvmuserError.kind`.
    :param message: one line for people; empty when there is nothing to say.
    """

    kind: str
    message: str
    exit_status: int

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe one of `EXPECTED`."""
        if isinstance(error, NvmuserError):
            return cls(error.kind, _one_line(str(error)), error.exit_status)
        if isinstance(error, click.ClickException):
            return cls(UsageError.kind, _one_line(error.format_message()), error.exit_code)
        if isinstance(error, OutputError):
            return cls._of_output(error.__cause__)
        if isinstance(error, OSError):
            return cls._of_system(error)
        return cls("interrupted", "interrupted", INTERRUPTED)

    @classmethod
    def _of_system(cls, error: OSError) -> Failure:
        reason = error.strerror or str(error)
        if isinstance(error, PermissionError) and isinstance(error.filename, str | os.PathLike):
            return cls.of(denied(Path(error.filename)))
        kind = "no-space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "system"
        return cls(kind, f"{error.filename}: {reason}" if error.filename else reason, 1)

    @classmethod
    def _of_output(cls, error: BaseException | None) -> Failure:
        if isinstance(error, BrokenPipeError):  # `| head` has what it wanted
            return cls("output", "", _BROKEN_PIPE)
        reason = error.strerror if isinstance(error, OSError) else error
        return cls("output", f"cannot write the output: {reason}", 1)

    def to_json(self) -> dict[str, Any]:
        return {"error": {"code": self.kind, "message": self.message, "exit_status": self.exit_status}}

    def report(self, *, as_json: bool) -> None:
        """Print it. Nothing that fails here is worth a second failure."""
        if self.kind == "output":
            # Python flushes once more at its end, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not self.message:
            return
        with contextlib.suppress(OSError):
            print(f"nvmuser: {self.message}", file=sys.stderr)
        if as_json:
            with contextlib.suppress(OutputError, OSError):
                print(json.dumps(self.to_json(), indent=2), flush=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())


class _Output(io.FileIO):
    """Standard output whose errors say that they are its own."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OutputError from error


def prepare_standard_files() -> None:
    """Give a process that was started without stdin, stdout or stderr (`>&-`) the null device instead.

    Otherwise the first socket or file that is opened would be its standard output.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    if sys.stdout is sys.__stdout__:  # else a test reads it
        raw = io.BufferedWriter(_Output(1, "w", closefd=False))
        sys.stdout = io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape", line_buffering=os.isatty(1))
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
