"""From what is wanted and what SPDK has to the calls that lead from one to the other. Pure functions.

Puts the planner together, and owns the order: what has to go (`removals`), then what has to be there (`additions`, with
`exports` and `attachments`), both by what is ours (`ownership`), into one `draft`. It makes no call, and it does not
know files, sockets or processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.paths import DEFAULT_TARGET
from nvmuser.reconcile.actual import Actual
from nvmuser.reconcile.additions import Additions
from nvmuser.reconcile.calls import Plan, Problem
from nvmuser.reconcile.draft import Draft
from nvmuser.reconcile.exports import Exports
from nvmuser.reconcile.ownership import Ownership
from nvmuser.reconcile.remotes import Routes
from nvmuser.reconcile.removals import Removals
from nvmuser.reconcile.reservations import NO_CLAIMS, Claims

NO_ROUTES = Routes()


def plan(
    desired: Desired,
    actual: Actual,
    directory: Callable[[str], Path],
    without: frozenset[Key] = frozenset(),
    routes: Routes = NO_ROUTES,
    leaving: frozenset[Key] = frozenset(),
    claims: Claims = NO_CLAIMS,
) -> Plan:
    """The calls from `actual` to `desired`, which is what is wanted of one target.

    :param directory: where a controller's listener lives.
    :param without: keys of mirrors that are to be started without the members that are missing.
    :param routes: where the paths of remotes lead.
    :param leaving: keys of what goes to another target: of what is deleted in `desired`, these are only closed.
    :param claims: who may write to the volumes of remotes.
    """
    ownership, draft = Ownership(desired, actual), Draft()
    exports = Exports(desired, actual, ownership, draft, directory)
    Removals(desired, actual, ownership, draft, leaving, claims.release).plan()
    exports.plan_transport()
    Additions(desired, actual, ownership, draft, exports, without=without, routes=routes, refused=claims.refused).plan()
    return Plan(
        tuple(draft.calls),
        tuple(draft.conflicts),
        frozenset(draft.waiting),
        tuple(ownership.foreign(directory)),
        frozenset(draft.adopted),
        _restart(desired, actual),
    )


def closing(desired: Desired, actual: Actual, leaving: frozenset[Key]) -> Plan:
    """The calls after which nothing is there any more of what is deleted in `desired`; nothing is made or repaired.

    :param leaving: as of `plan`.
    """
    draft = Draft()
    Removals(desired, actual, Ownership(desired, actual), draft, leaving).plan()
    return Plan(tuple(draft.calls), tuple(draft.conflicts))


def _restart(desired: Desired, actual: Actual) -> tuple[Problem, ...]:
    """Profile and cores are given to a process when it starts. What nobody has declared cannot be wrong."""
    wanted, other = next(iter(desired.targets()), None), []
    if wanted is None:
        return ()
    if actual.profile and actual.profile != wanted.profile:
        other.append(f"profile {wanted.profile}, not {actual.profile}")
    if actual.cores and wanted.cores and set(actual.cores) != set(wanted.cores):
        other.append(f"cores {_numbers(wanted.cores)}, not {_numbers(actual.cores)}")
    if not other:
        return ()
    name = "" if wanted.name == DEFAULT_TARGET else f" {wanted.name}"
    return (Problem(wanted.key, f"{', '.join(other)}: takes effect with `nvmuser target restart{name}`"),)


def _numbers(cores: Iterable[int]) -> str:
    return " ".join(map(str, sorted(cores)))
