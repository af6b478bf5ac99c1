"""`bench move`: how stalls are found in fio's logs, and what the outcome prints."""

from __future__ import annotations

from nvmuser.bench.measure.runner import FioRun
from nvmuser.bench.scenarios.move import MoveOutcome, MovePlan, _longest


def test_each_move_is_one_peak() -> None:
    """Of the windows around a move, the longest I/O counts once."""
    log = ["100, 2000000, 1, 4096, 0, 0", "1500, 210000000, 1, 4096, 0, 0", "1600, 190000000, 1, 4096, 0, 0"]
    log += ["3000, 150000000, 1, 4096, 0, 0", "4000, 3000000, 1, 4096, 0, 0"]
    run = FioRun([], {"log_lat.1.log": "\n".join(log).encode(), "log_clat.1.log": b"1, 9000000000, 0, 0"})
    assert _longest(run, 2) == [0.21, 0.15]
    assert _longest(run, 3) == [0.21, 0.15, 0.003]


def test_the_document() -> None:
    outcome = MoveOutcome({"boot"}, fsck_clean=True, stalls=[0.2, 0.1, 0.3], calls=[0.1, 0.1, 0.1])
    outcome.before, outcome.during = [0.02], [0.05]
    document = outcome.to_json(MovePlan(rounds=3, kills=10))
    assert document["stall_s"] == {"median": 0.2, "max": 0.3}
    assert document["neighbour"]["longer_s"] == 0.05 - 0.02
    assert (document["rounds"], document["io_errors"], document["bad_blocks"], document["guest_boots"]) == (3, 0, 0, 1)
    assert outcome.wrong is None
    assert "neighbour" not in outcome.to_json(MovePlan(rounds=3))
