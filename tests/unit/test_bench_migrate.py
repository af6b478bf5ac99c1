"""What `nvmuser bench migrate` reports of its guests, without any."""

from __future__ import annotations

import json

import pytest

from nvmuser.bench.measure.migrant import MIB, WRITTEN_MIB, Migrant, Seen
from nvmuser.bench.scenarios.migrate import Journey, MigrateOutcome, MigratePlan
from nvmuser.errors import GuestError
from nvmuser.guest.move import Result

WHOLE = {"io_bytes": WRITTEN_MIB * MIB, "lat_ns": {"max": 2_000_000}}
JOB = {"error": 0, "write": WHOLE | {"lat_ns": {"max": 900_000_000}}, "read": WHOLE, "sync": {"lat_ns": {"max": 0}}}


def guest(jobs: object, wrong: str = "0", pages: str = "0\n") -> Migrant:
    """One in whose background fio has written these jobs."""
    text = jobs if isinstance(jobs, str) else "fio: a note\n" + json.dumps({"jobs": jobs})

    async def run(command: str, *, input: bytes = b"") -> str:
        if "/tmp/wrong" in command:
            return pages
        return text if command == "cat /tmp/fio.json" else wrong if "md5sum" in command else ""

    return Migrant(run)


@pytest.mark.parametrize(
    ("jobs", "wrong", "seen"),
    [
        ([JOB, JOB], "0\n", Seen(0, 0, 0, 0.9)),
        ([JOB, JOB], "3\n", Seen(0, 0, 3, 0.9)),
        ([JOB, JOB | {"error": 84}], "0", Seen(0, 1, 0, 0.9)),
        ([JOB, JOB | {"error": 5}], "0", Seen(1, 0, 0, 0.9)),
        ([JOB], "0", Seen(1, 0, 0, 0.9)),
        ([JOB, JOB | {"read": WHOLE | {"io_bytes": 1}}], "0", Seen(1, 0, 0, 0.9)),
    ],
)
async def test_what_a_guest_saw(jobs: list[object], wrong: str, seen: Seen) -> None:
    assert await guest(jobs, wrong).finish() == seen


async def test_buffers_that_are_not_as_they_were_read() -> None:
    assert (await guest([JOB, JOB], "1", "4\n").finish()).memory_mismatches == 5
    with pytest.raises(GuestError, match="reader: read: Input/output error"):
        await guest([JOB, JOB], "0", "reader: read: Input/output error").finish()


async def test_fio_that_says_nothing() -> None:
    with pytest.raises(GuestError, match="no JSON"):
        await guest("fio: not found").finish()


def test_reported() -> None:
    ours = Journey([Seen(0, 0, 0, 0.5), Seen(0, 0, 0, 0.7)], [Result(1.0, 0.1, 100)] * 2, {"x"}, fsck_clean=True)
    peer = Journey([Seen(0, 0, 0, 0.2)], [Result(1.0, 0.1, 100)], {"y"}, fsck_clean=True)
    outcome = MigrateOutcome(ours, {"nvme": peer})
    facts = outcome.to_json(MigratePlan(2, peers=True))
    assert outcome.wrong is None
    assert facts["stall_s"] == {"median": 0.6, "max": 0.7}
    assert facts["peers"]["nvme"]["stall_s"]["median"] == 0.2
    assert {"rounds", "io_errors", "bad_blocks", "guest_boots", "fsck_clean", "downtime_s", "total_s"} <= set(facts)
    assert "peers" not in outcome.to_json(MigratePlan(2))
    peer.seen.append(Seen(0, 0, 2, 0.1))
    assert outcome.wrong == "nvme: 0 I/O errors, 0 wrong blocks, 2 pieces of memory not as they were read"
    ours.boots.add("z")
    assert outcome.wrong == "the guest has rebooted"
    ours.boots.remove("z")
    ours.fsck_clean = False
    assert outcome.wrong is not None
    assert "fsck" in outcome.wrong
