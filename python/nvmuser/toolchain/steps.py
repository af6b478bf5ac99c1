"""What a set-up step is, and how a row of them is run and shown.

Owns progress (what, how far, how long; on a terminal and without one), the log of each step, and that two set-ups on
one cache never meet. It does not know what any step does: that is `nvmuser.toolchain.setup`.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from nvmuser.errors import SetupError

_QUIET_SECONDS = 15.0
"""Without a terminal: seconds between two lines of a step that goes on."""


@dataclass
class Reporter:
    """What a running step is given: its log, and a way to report progress."""

    log: Path
    what: str = ""
    fraction: float | None = None
    _changed: Callable[[], None] = field(default=lambda: None, repr=False)

    def update(self, what: str, fraction: float | None = None) -> None:
        """Report what is being done, and the fraction of the step (0 to 1) that is done, where that is known."""
        self.what = what
        self.fraction = None if fraction is None else min(max(fraction, 0.0), 1.0)
        self._changed()


@dataclass(frozen=True)
class Step:
    """One thing that set-up provides.

    `done` is cheap and true only when nothing is left to do; `run` may be interrupted anywhere and then run again.
    """

    name: str
    title: str
    done: Callable[[], bool]
    run: Callable[[Reporter], None]


class _Display(AbstractContextManager["_Display"]):
    """Shows one running step."""

    def __init__(self, console: Console, title: str, reporter: Reporter) -> None:
        self.console = console
        self.title = title
        self.reporter = reporter
        reporter._changed = self.refresh

    @abstractmethod
    def refresh(self) -> None:
        """The reporter's state changed."""


class _TerminalDisplay(_Display):
    def __enter__(self) -> _TerminalDisplay:
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[what]}"), console=self.console, transient=True,
        )  # fmt: skip
        self._progress.start()
        self._task: TaskID = self._progress.add_task(self.title, total=None, what="")
        return self

    def refresh(self) -> None:
        fraction = self.reporter.fraction
        total = None if fraction is None else 1.0
        self._progress.update(self._task, total=total, completed=fraction or 0.0, what=escape(self.reporter.what))

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class _LineDisplay(_Display):
    """No terminal: a line at the start and one every so often, so that a log shows that something goes on."""

    def __enter__(self) -> _LineDisplay:
        self._start = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="progress", daemon=True)
        self.console.print(f"  {self.title} …", markup=False, highlight=False, soft_wrap=True)
        self._thread.start()
        return self

    def refresh(self) -> None:
        """The ticker reads the reporter; nothing to do at once."""

    def _tick(self) -> None:
        while not self._over.wait(_QUIET_SECONDS):
            fraction = self.reporter.fraction
            share = "" if fraction is None else f"{fraction:4.0%} "
            line = f"    {time.monotonic() - self._start:4.0f} s {share}{self.reporter.what}"
            self.console.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()


def run_steps(steps: Sequence[Step], logs: Path, console: Console) -> dict[str, float]:
    """Run what is not done yet, in order; return the seconds that each step took (0.0: it was done already).

    :raises SetupError: a step failed; the message ends with the tail of its output and names its log.
    """
    seconds: dict[str, float] = {}
    for step in steps:
        began = time.monotonic()
        if step.done():
            seconds[step.name] = 0.0
            console.print(f"[green]✓[/] {escape(step.title)}", highlight=False, soft_wrap=True)
            continue
        _run_step(step, logs, console)
        seconds[step.name] = time.monotonic() - began
        console.print(f"[green]✓[/] {escape(step.title)} [dim]({seconds[step.name]:.0f} s)[/]", highlight=False)
    return seconds


def _run_step(step: Step, logs: Path, console: Console) -> None:
    log = logs / f"{step.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"# {step.title}, {time.strftime('%F %T')}\n", encoding="utf-8")
    reporter = Reporter(log)
    display = (_TerminalDisplay if console.is_terminal else _LineDisplay)(console, step.title, reporter)
    try:
        with display:
            step.run(reporter)
    except SetupError as error:
        console.print(f"[red]✗[/] {escape(step.title)}", highlight=False)
        first, *tail = str(error).splitlines()
        for line in tail:
            console.print(f"    {line}", markup=False, highlight=False, soft_wrap=True, style="dim")
        raise SetupError(f"{step.name}: {first} (log: {log})") from error


@contextmanager
def exclusive(cache: Path, console: Console) -> Iterator[None]:
    """Hold the cache's set-up lock; wait, and print so, while another set-up has it.

    :raises SetupError: the cache cannot be written to.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(cache / "setup.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise SetupError(f"{cache}: {error.strerror}: set NVMUSER_CACHE to a directory of yours") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print("another nvmuser setup is at work on this cache: waiting for it", highlight=False)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
