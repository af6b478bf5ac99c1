"""What `status` shows of what went wrong: with its time, and only as long as it is so."""

from __future__ import annotations

import re
import time
from datetime import datetime

import pytest

from nvmuser.supervisor.history import History, stamped


def texts(history: History) -> list[str]:
    return [trouble.text for trouble in history.troubles]


def test_times_are_local_and_iso(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        history = History()
        history.note("target", "it broke")
        (shown,) = map(str, history.troubles)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+05:30 it broke", shown)
        assert datetime.fromisoformat(shown.split()[0]).timestamp() == pytest.approx(time.time(), abs=60)
        assert stamped("x", 0) == "1970-01-01T05:30:00+05:30 x"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_only_what_is_about_it_is_resolved_and_its_count_goes_on() -> None:
    history = History()
    for about in ("target", "standby", "target"):
        history.note(about, "no memory")
    history.resolve("target")
    assert [trouble.about for trouble in history.troubles] == ["standby"]
    history.note("target", "no memory")
    assert str(history.troubles[-1]).endswith("no memory (3 times)")


def test_objects_that_are_right_again_are_not_shown() -> None:
    history = History()
    history.note("object volume/a", "a is gone")
    history.note("object volume/b", "b is gone")
    history.note("endpoint", "exited")
    history.hold_each("object ", {"object volume/b": "b is gone"})
    assert texts(history) == ["b is gone", "exited"]


def test_what_is_wrong_with_an_object_replaces_what_was() -> None:
    history = History()
    history.hold_each("object ", {"object volume/a": "a is gone"})
    history.hold_each("object ", {"object volume/a": "a is too small", "object volume/b": "b is gone"})
    assert texts(history) == ["a is too small", "b is gone"]
    history.hold_each("object ", {})
    assert texts(history) == []


def test_what_holds_now_keeps_the_time_of_its_beginning() -> None:
    history = History()
    history.hold("room", ["full"])
    first = history.troubles[0].last
    history.hold("room", ["full"])
    assert history.troubles[0].last == first
    assert history.troubles[0].times == 1
    history.hold("room", ["another"])
    assert texts(history) == ["another"]
    history.hold("room", [])
    assert texts(history) == []


def test_the_last_ten_that_differ_are_kept() -> None:
    history = History()
    for number in range(30):
        history.note("target", f"{number}")
    assert texts(history) == [f"{number}" for number in range(20, 30)]
