"""What an idle controller costs the endpoint."""

import asyncio
import re
from pathlib import Path

from vfio_fds import until
from vfio_guest import Client, Driver
from vfio_supervisor import endpoint_process
from vfio_target import targets_in_thread

CONTROLLERS = 200
GUESTS = 100
LIMIT_KIB = 256


def anonymous_kib(pid: int) -> int:
    found = re.search(r"^RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found
    return int(found[1])


async def test_memory_of_idle_controllers(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(CONTROLLERS)]
    with targets_in_thread([tmp_path / "targets" / name / "cntrl" for name in names[:GUESTS]]):
        async with endpoint_process(tmp_path) as (process, supervisor):
            supervisor.begin([])
            await supervisor.status()
            empty = anonymous_kib(process.pid)
            supervisor.send("serve", controllers=names)
            status = await supervisor.status()
            assert status["controllers"] == CONTROLLERS
            listening = anonymous_kib(process.pid)

            supervisor.send("target", state="ready")
            drivers = [Driver(Client(tmp_path / "guests" / name / "cntrl")) for name in names[:GUESTS]]

            def set_up() -> None:
                for driver in drivers:
                    driver.set_up()
                    driver.csts()

            await asyncio.to_thread(set_up)
            await until(lambda: len(supervisor.fds) == 4 * GUESTS)
            connected = anonymous_kib(process.pid)
            for driver in drivers:
                driver.close()
            supervisor.close()
    print(
        f"\n{(listening - empty) / CONTROLLERS:.1f} KiB a listener, {(connected - listening) / GUESTS:.1f} KiB a guest"
    )
    assert (listening - empty) / CONTROLLERS < LIMIT_KIB
    assert (connected - listening) / GUESTS + (listening - empty) / CONTROLLERS < LIMIT_KIB
