"""What the commands of the control plane print, and how they run what is asynchronous."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nvmuser.model.sizes import SIZE_FIELDS, format_size
from nvmuser.reconcile.outcome import Outcome

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

_TERMINATED = 128 + signal.SIGTERM


def run(work: Coroutine[Any, Any, T]) -> T:
    """Wait for it."""
    return asyncio.run(work)


def run_guarded(work: Coroutine[Any, Any, T]) -> T:
    """Wait for it; SIGTERM cancels it, so that it ends in as good order as with Ctrl-C.

    :raises asyncio.CancelledError: after SIGTERM.
    """

    async def guarded() -> T:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    return asyncio.run(guarded())


def run_until_ended(work: Coroutine[Any, Any, int]) -> int:
    """What runs until somebody ends it. Returns the exit status."""
    try:
        return run_guarded(work)
    except asyncio.CancelledError:
        return _TERMINATED


def console() -> Console:
    """For tables: as wide as the terminal, and never cut when there is none."""
    from rich.console import Console  # 30 ms, for which commands without tables need not wait

    plain = Console()
    return plain if plain.is_terminal else Console(width=240)


def counted(number: int, noun: str) -> str:
    """`1 call`, `2 calls`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def plain(value: Any) -> str:
    """A value of an object in words: not as Python or JSON has it."""
    match value:
        case bool():
            return "yes" if value else "no"
        case dict():
            return ", ".join(f"{key} {plain(item)}" for key, item in value.items()) or "none"
        case list() | tuple():
            return ", ".join(map(plain, value)) or "none"
        case None | "":
            return "none"
    return str(value)


def changed_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What differs between an object as it was and as it is: `size: 1G → 2G`."""
    fields = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return ", ".join(f"{key}: {_text(key, before.get(key))} → {_text(key, after.get(key))}" for key in fields)


def _text(field: str, value: Any) -> str:
    return format_size(value) if field in SIZE_FIELDS and isinstance(value, int) else plain(value)


def say(data: Any) -> None:
    """As JSON."""
    click.echo(json.dumps(data, indent=2))


def say_object(outcome: Outcome, as_json: bool, text: str) -> None:
    """What became of a change. `pending` in JSON: no target runs, and it takes effect when one starts."""
    if as_json:
        say(outcome.objects[0] | {"pending": outcome.pending} if len(outcome.objects) == 1 else outcome.to_json())
        return
    click.echo(text)
    if outcome.pending:
        click.echo("the target is not running: this takes effect when it starts (nvmuser target start)")
    for problem in outcome.problems:
        click.echo(f"note: {problem}")
