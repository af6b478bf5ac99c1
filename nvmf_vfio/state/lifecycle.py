"""The state machine of a controller that stays while targets come and go.

Owns the phase, and the facts on which its changes depend; nothing else writes them. It knows no memory, no message and
no socket: `nvmf_vfio.state.controller` reports events and asks for the phase.

::

    LIVE ──── target lost, CC.EN=0 ───────────────────────────► IDLE      ─── target ready ───────────────► LIVE
    LIVE ──── target lost, CC.EN=1, RDY=1 not seen yet ───────► ENABLING  ─── target ready, CC replayed ──► LIVE
    LIVE ──── target lost, RDY=1 seen, driver sets it up ─────► STARTING  ─── target ready, admin proxy ──► LIVE
    LIVE ──── target lost, controller in use ─────────────────► FAILED    ─── EN=0 or reset, target ready ► LIVE
    FAILED ── its queues' positions are known ────────────────► RESUMABLE ─── target goes on with them ───► LIVE
    RESUMABLE ─ they are lost ──► FAILED
    IDLE ──── EN=1 ──► ENABLING       ENABLING, STARTING, FAILED, RESUMABLE ─── EN=0 or reset, no target ──► IDLE

LIVE passes registers through; the other phases answer them here.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from nvmf_vfio.state.registers import CSTS_CFS, CSTS_RDY, CSTS_SHST_COMPLETE


class Phase(StrEnum):
    """Where the controller stands between guest and target; see the module's drawing."""

    LIVE = "live"
    FAILED = "failed"
    IDLE = "idle"
    ENABLING = "enabling"
    STARTING = "starting"
    RESUMABLE = "resumable"


class Lifecycle:
    """Phase of one controller. A method is an event, and each says which transitions it makes."""

    def __init__(self) -> None:
        self._phase = Phase.IDLE
        self._seen_ready = False
        self._io_started = False
        self._drained = True

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self._phase

    @property
    def seen_ready(self) -> bool:
        """Whether the guest has read CSTS.RDY=1 since it enabled the controller."""
        return self._seen_ready

    @property
    def io_started(self) -> bool:
        """Whether the driver has rung an I/O queue's doorbell by register since it enabled the controller."""
        return self._io_started

    @property
    def drained(self) -> bool:
        """Whether nothing that an earlier target had in flight can still land in guest memory."""
        return self._drained

    def enabled(self) -> None:
        """CC.EN has changed to 1. IDLE becomes ENABLING."""
        self._seen_ready = self._io_started = False
        if self._phase is Phase.IDLE:
            self._phase = Phase.ENABLING

    def disabled(self) -> None:
        """CC.EN has changed to 0, or the device was reset. What is not LIVE becomes IDLE."""
        self._seen_ready = False
        if self._phase is not Phase.LIVE:
            self._phase = Phase.IDLE

    def ready_read(self) -> None:
        """The guest has read CSTS.RDY=1 of a controller that it has enabled."""
        self._seen_ready = True

    def io_doorbell(self) -> None:
        """The driver has rung an I/O queue's doorbell."""
        self._io_started = True

    def target_lost(self, *, is_enabled: bool, is_in_use: Callable[[], bool]) -> None:
        """No target answers any more. LIVE becomes IDLE, ENABLING, FAILED or STARTING.

        :param is_enabled: CC.EN.
        :param is_in_use: whether the driver has finished setting up; called only when the phase depends on it.
        """
        self._drained = False
        if self._phase is not Phase.LIVE:
            return
        if not is_enabled:
            self._phase = Phase.IDLE
        elif not self._seen_ready:
            self._phase = Phase.ENABLING
        else:
            self._phase = Phase.FAILED if is_in_use() else Phase.STARTING

    def target_drained(self) -> None:
        """Nothing of the lost target is in flight any more. No transition."""
        self._drained = True

    def positions_known(self) -> None:
        """It is known where each queue was when all I/O had ended. FAILED becomes RESUMABLE."""
        if self._phase is Phase.FAILED:
            self._phase = Phase.RESUMABLE

    def positions_lost(self) -> None:
        """Its queues cannot go on. RESUMABLE becomes FAILED."""
        if self._phase is Phase.RESUMABLE:
            self._phase = Phase.FAILED

    def target_ready(self) -> None:
        """A target has the guest's state. FAILED waits for `hand_over`, the others become LIVE."""
        self._drained = True
        if self._phase is not Phase.FAILED:
            self._phase = Phase.LIVE

    def hand_over(self) -> bool:
        """Give a controller whose driver has reset it to the target that is online. IDLE and ENABLING become LIVE.

        ENABLING too: one REGION_WRITE_MULTI may clear CC.EN and set it again.

        :returns: whether that was a transition: the target does not have the registers yet then.
        """
        if self._phase not in (Phase.IDLE, Phase.ENABLING):
            return False
        self._phase = Phase.LIVE
        return True

    def csts(self, *, is_shutting_down: bool) -> int:
        """CSTS while no target answers (NVM Express Base Specification 1.4, section 3.1.6).

        :param is_shutting_down: CC.SHN is not zero.
        """
        value = CSTS_SHST_COMPLETE if is_shutting_down and self._drained else 0
        if self._phase is Phase.FAILED:
            return value | CSTS_CFS | CSTS_RDY
        if self._phase in (Phase.STARTING, Phase.RESUMABLE):
            return value | CSTS_RDY
        if self._phase is Phase.IDLE and not self._drained:
            # The guest may take its memory back only when nothing can land in it any more.
            return value | CSTS_RDY
        return value

    def to_json(self) -> dict[str, Any]:
        """The fields of the session's record that belong to the state machine."""
        return {"phase": self._phase.value, "seen_ready": self._seen_ready, "io_started": self._io_started}

    def load_json(self, document: dict[str, Any]) -> None:
        """Take over what `to_json` returned.

        :raises KeyError: a field is missing.
        :raises ValueError: the phase is unknown.
        """
        self._phase = Phase(document["phase"])
        self._seen_ready = document["seen_ready"]
        self._io_started = document["io_started"]
