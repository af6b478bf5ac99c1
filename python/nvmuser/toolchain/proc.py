"""The one gateway through which set-up runs other programs.

Owns: the copyable command in the log, the tail of the output in the error, the time limit, and that no program outlives
us. It does not decide what to run, and it does not serve long-lived processes (target, endpoint and QEMU have their own
owners).
"""

from __future__ import annotations

import os
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from nvmuser.errors import SetupError

TAIL_LINES = 15
"""How much of a failed program's output goes into the error."""

_KILL_GRACE_SECONDS = 10.0

# A surrounding make hands its job server and flags down in these; a make that we start must not obey them. The library
# path would make a build link against, or a probe run with, libraries that are not the ones asked for.
_UNWANTED = frozenset(
    {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "CFLAGS", "CXXFLAGS", "LDFLAGS", "LD_LIBRARY_PATH"}
)


class CommandError(SetupError):
    """A program ended with a non-zero status, or could not be run at all.

    :param status: its exit status; 127 when it could not be started, 124 when it took too long.
    """

    def __init__(self, command: Sequence[str], status: int, tail: Sequence[str], why: str = "") -> None:
        self.command = tuple(command)
        self.status = status
        self.tail = tuple(tail)
        reason = why or f"exit status {status}"
        super().__init__("\n".join([f"{shlex.join(command)}: {reason}", *tail]))


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment without what would leak into a build, in the C locale (output is parsed)."""
    kept = {key: value for key, value in os.environ.items() if key not in _UNWANTED}
    return kept | {"LC_ALL": "C.UTF-8"} | dict(extra or {})


def output(
    command: Sequence[str | Path],
    *,
    timeout: float = 60.0,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a short program; return its standard output.

    :raises CommandError: it is missing, failed, or took too long.
    """
    argv = [str(word) for word in command]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=timeout,
            env=environment(env), cwd=cwd, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except OSError as error:
        raise CommandError(argv, 127, (), error.strerror or str(error)) from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(argv, 124, (), f"took longer than {timeout:g} s") from error
    if done.returncode != 0:
        raise CommandError(argv, done.returncode, (done.stdout + done.stderr).splitlines()[-TAIL_LINES:])
    return done.stdout


def run(
    command: Sequence[str | Path],
    *,
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
    timeout: float | None = None,
) -> None:
    """Run a long program with its output appended to `log`; `on_line` sees each line as it comes.

    However this ends, also by KeyboardInterrupt, the program and its children are gone afterwards.

    :raises CommandError: it is missing, failed, or took longer than `timeout` seconds.
    """
    argv = [str(word) for word in command]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8", errors="replace") as sink:
        sink.write(f"$ {f'cd {shlex.quote(str(cwd))} && ' if cwd else ''}{shlex.join(argv)}\n")
        sink.flush()
        status, tail = _stream(argv, sink, cwd, environment(env), on_line, timeout)
    if status == 124 and timeout is not None:
        raise CommandError(argv, status, tail, f"took longer than {timeout:g} s")
    if status != 0:
        raise CommandError(argv, status, tail)


def _stream(
    argv: Sequence[str],
    sink: IO[str],
    cwd: Path | None,
    env: Mapping[str, str],
    on_line: Callable[[str], None] | None,
    timeout: float | None,
) -> tuple[int, list[str]]:
    deadline = None if timeout is None else time.monotonic() + timeout
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    process = _start(argv, cwd, env)
    assert process.stdout is not None
    try:
        for line in _lines(process.stdout, deadline):
            sink.write(line + "\n")
            tail.append(line)
            if on_line is not None:
                on_line(line)
        status = process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired):
        return 124, list(tail)
    finally:
        _end(process)
    return status, list(tail)


def _start(argv: Sequence[str], cwd: Path | None, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # Its own process group, so that all of it can be ended at once; the death signal covers our own SIGKILL.
    guarded = ["setpriv", "--pdeathsig", "TERM", *argv]
    try:
        return subprocess.Popen(
            guarded, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=cwd, env=env, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise CommandError(argv, 127, (), error.strerror or str(error)) from error


def _lines(stream: IO[bytes], deadline: float | None) -> Iterator[str]:
    """Lines as they come (a carriage return ends one too: progress meters); TimeoutError at the deadline."""
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if (left is not None and left <= 0) or not selector.select(left):
                raise TimeoutError
            chunk = os.read(stream.fileno(), 65536)
            *complete, pending = (pending + chunk).replace(b"\r", b"\n").split(b"\n")
            yield from (line.decode("utf-8", "replace") for line in complete if line)
            if not chunk:
                if pending:
                    yield pending.decode("utf-8", "replace")
                return


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdout is not None:
        process.stdout.close()
    if process.poll() is not None:
        return
    for signum in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, signum)
        try:
            process.wait(_KILL_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        return


def build_environment() -> dict[str, str]:
    """PATH with our own Python first: the builds run meson and import pyelftools, jinja2 and tabulate."""
    return {"PATH": f"{Path(sys.prefix) / 'bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
