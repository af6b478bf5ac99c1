"""`nvmuser events`: what has been changed, when, by whom and from where."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict

import click

from nvmuser.cli.options import json_option
from nvmuser.cli.present import changed_fields, say
from nvmuser.errors import NotFoundError
from nvmuser.paths import StateDir
from nvmuser.store import Store
from nvmuser.store.events import Event
from nvmuser.supervisor import control
from nvmuser.supervisor.remote import Remote

_INTERVAL = 0.2


@click.command()
@click.option("-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True, help="The last so many.")
@click.option("--after", type=click.IntRange(min=0), help="Those after the event with this number.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C; JSON: an object a line.")
@json_option
@click.pass_obj
def events(state: StateDir, lines: int, after: int | None, follow: bool, as_json: bool) -> None:
    """Show what has been changed: when, by whom, from where, and how it was before.

    An event is written with the change itself, in one transaction. The latest 10,000 are kept.

    \b
    Examples:
      nvmuser events -n 5
      nvmuser events --follow
      nvmuser events --json | jq '.[] | select(.name == "data")'
    """
    if isinstance(state, Remote):
        _of_remote(state, lines, after, follow=follow, as_json=as_json)
        return
    with control.opened(state) as store:
        if store is None and follow:
            raise NotFoundError(f"{state.root}: nothing has been changed here yet")
        found = _since(store, lines, after) if store else []
        if not follow:
            _print(found, as_json)
        elif store:
            for event in _followed(store, found):
                click.echo(json.dumps(event.to_json()) if as_json else _text(event))


def _of_remote(state: Remote, lines: int, after: int | None, *, follow: bool, as_json: bool) -> None:
    found = [Event.from_json(asdict(one)) for one in state.events(lines, after)]
    if not follow:
        _print(found, as_json)
        return
    last = found[-1].id if found else after or 0
    for event in itertools.chain(found, (Event.from_json(asdict(one)) for one in state.watch(last))):
        click.echo(json.dumps(event.to_json()) if as_json else _text(event))


def _since(store: Store, lines: int, after: int | None) -> list[Event]:
    return store.events(store.event_bounds()[1] - lines if after is None else after)


def _print(found: list[Event], as_json: bool) -> None:
    if as_json:
        say([event.to_json() for event in found])
        return
    for event in found:
        click.echo(_text(event))


def _followed(store: Store, found: list[Event]) -> Iterator[Event]:
    last = store.event_bounds()[1] if not found else 0
    while True:
        yield from found
        last = found[-1].id if found else last
        found = store.events(last)
        if not found:
            time.sleep(_INTERVAL)


def _text(event: Event) -> str:
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(event.time))
    source = f" ({event.actor.source})" if event.actor.source else ""
    fields = "  " + changed_fields(event.before, event.after) if event.before and event.after else ""
    return f"{event.id:<6} {when} {event.actor.who}{source}: {event.action} {event.key.words}{fields}"
