"""Which cores each target gets, where several share a machine. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from nvmuser.errors import ConflictError
from nvmuser.model.objects import TargetSettings


def assigned(targets: Sequence[TargetSettings], allowed: Collection[int]) -> dict[str, tuple[int, ...]]:
    """Cores of each target, by name: those that are declared, else the last that no other target has.

    The last ones: interrupts and whatever is not pinned tend to be on the first. Where there are not enough, targets
    share.

    :param targets: the first chooses first.
    :param allowed: CPU numbers that a target may use.
    """
    found = {one.name: one.cores for one in targets if one.cores}
    for target in targets:
        if target.name in found:
            continue
        taken = {core for cores in found.values() for core in cores}
        count = _count(target)
        free = sorted(set(allowed) - taken)
        chosen = free if len(free) >= count else sorted(allowed)
        found[target.name] = tuple(chosen[-count:])
    return found


def _count(target: TargetSettings) -> int:
    """The dynamic scheduler needs a second core, which it lets sleep while one is enough."""
    return 2 if target.profile == "balanced" else 1


def check(targets: Sequence[TargetSettings]) -> None:
    """Check that no core is declared for two targets that poll: each would have half of it.

    :raises ConflictError: one is.
    """
    first: dict[int, TargetSettings] = {}
    for target in targets:
        for core in target.cores if target.profile != "eco" else ():
            other = first.setdefault(core, target)
            if other is not target:
                raise ConflictError(
                    f"{target.subject}: core {core} is target {other.name}'s, and both poll, so that each would have "
                    "half of it: take other cores, or the profile eco for one of them"
                )


def shared(targets: Sequence[TargetSettings], allowed: Collection[int]) -> list[str]:
    """Which targets that poll share a core because there are not enough, in words."""
    found, first, texts = assigned(targets, allowed), dict[int, str](), list[str]()
    for target in targets:
        for core in found[target.name] if target.profile != "eco" else ():
            other = first.setdefault(core, target.name)
            if other != target.name:
                texts.append(f"targets {other} and {target.name} both poll on core {core}: each has half of it")
    return texts
