"""The state machine of a controller: every event in every phase."""

from collections.abc import Callable

import pytest

from nvmf_vfio.state.lifecycle import Lifecycle, Phase
from nvmf_vfio.state.registers import CSTS_CFS, CSTS_RDY, CSTS_SHST_COMPLETE

LIVE, FAILED, IDLE, ENABLING, STARTING = Phase.LIVE, Phase.FAILED, Phase.IDLE, Phase.ENABLING, Phase.STARTING
RESUMABLE = Phase.RESUMABLE
Event = Callable[[Lifecycle], object]


def lost(*, is_enabled: bool = True, is_in_use: bool = True) -> Event:
    return lambda lifecycle: lifecycle.target_lost(is_enabled=is_enabled, is_in_use=lambda: is_in_use)


def in_phase(phase: Phase) -> Lifecycle:
    """A controller whose driver had enabled it and seen RDY, in a phase to which events have led it."""
    lifecycle = Lifecycle()
    lifecycle.target_ready()
    lifecycle.enabled()
    if phase is not ENABLING:
        lifecycle.ready_read()
    if phase is IDLE:
        lifecycle.disabled()
    if phase is not LIVE:
        lost(is_enabled=phase is not IDLE, is_in_use=phase in (FAILED, RESUMABLE))(lifecycle)
    if phase is RESUMABLE:
        lifecycle.positions_known()
    assert lifecycle.phase is phase
    return lifecycle


@pytest.mark.parametrize(
    ("event", "after"),
    [
        (Lifecycle.enabled, {IDLE: ENABLING}),
        (Lifecycle.disabled, {FAILED: IDLE, ENABLING: IDLE, STARTING: IDLE, RESUMABLE: IDLE}),
        (lost(), {LIVE: FAILED}),
        (lost(is_in_use=False), {LIVE: STARTING}),
        (lost(is_enabled=False), {LIVE: IDLE}),
        (Lifecycle.target_drained, {}),
        (Lifecycle.target_ready, {IDLE: LIVE, ENABLING: LIVE, STARTING: LIVE, RESUMABLE: LIVE}),
        (Lifecycle.hand_over, {IDLE: LIVE, ENABLING: LIVE}),
        (Lifecycle.positions_known, {FAILED: RESUMABLE}),
        (Lifecycle.positions_lost, {RESUMABLE: FAILED}),
    ],
    ids=["enabled", "disabled", "lost", "starting", "lost-disabled", "drained", "ready", "hand-over", "known", "gone"],
)
@pytest.mark.parametrize("phase", list(Phase))
def test_transitions(phase: Phase, event: Event, after: dict[Phase, Phase]) -> None:
    """:param after: the phases that change."""
    lifecycle = in_phase(phase)
    event(lifecycle)
    assert lifecycle.phase is after.get(phase, phase)


def test_whether_it_is_in_use_is_asked_only_when_it_matters() -> None:
    def fail() -> bool:
        raise AssertionError("it may read guest memory")

    for phase in set(Phase) - {LIVE}:
        in_phase(phase).target_lost(is_enabled=True, is_in_use=fail)


@pytest.mark.parametrize(
    ("phase", "before", "drained"),
    [
        (FAILED, CSTS_CFS | CSTS_RDY, CSTS_CFS | CSTS_RDY),
        (STARTING, CSTS_RDY, CSTS_RDY),
        (RESUMABLE, CSTS_RDY, CSTS_RDY),
        (IDLE, CSTS_RDY, 0),
        (ENABLING, 0, 0),
    ],
)
def test_csts_without_a_target(phase: Phase, before: int, drained: int) -> None:
    lifecycle = in_phase(phase)
    assert lifecycle.csts(is_shutting_down=False) == before
    assert not lifecycle.csts(is_shutting_down=True) & CSTS_SHST_COMPLETE
    lifecycle.target_drained()
    assert lifecycle.csts(is_shutting_down=False) == drained
    assert lifecycle.csts(is_shutting_down=True) == drained | CSTS_SHST_COMPLETE


@pytest.mark.parametrize("phase", list(Phase))
def test_a_successor_goes_on_in_the_same_phase(phase: Phase) -> None:
    lifecycle, successor = in_phase(phase), Lifecycle()
    lifecycle.io_doorbell()
    successor.load_json(lifecycle.to_json())
    assert successor.to_json() == lifecycle.to_json()
    assert (successor.phase, successor.io_started) == (phase, True)
