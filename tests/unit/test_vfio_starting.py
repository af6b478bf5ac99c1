"""A driver that was setting its controller up when its target went."""

from vfio_fds import signals, until
from vfio_guest import ASQ, Driver
from vfio_target import FakeTarget
from vfio_world import World, do

from nvmf_vfio.state.registers import CSTS_RDY, Register

CREATE_COMPLETION_QUEUE, IDENTIFY = 0x05, 0x06


async def starting(world: World) -> tuple[FakeTarget, Driver]:
    """A driver that has set a queue up and waits for its next command when the target dies."""
    target = world.target()
    target.works = True
    await world.report("ready")
    driver = world.driver()
    await do(driver.set_up)
    assert await do(driver.csts) == CSTS_RDY
    await do(driver.submit, CREATE_COMPLETION_QUEUE, 1)
    await until(lambda: driver.completion(0)[1:] == (1, 1))
    await do(driver.consume, 1)
    target.works = False
    await do(driver.submit, IDENTIFY, 2)
    signals(driver.interrupt)
    return target, driver


async def carry_on(world: World) -> FakeTarget:
    target = world.target()
    target.works = True
    await world.report("drained")
    await world.report("ready")
    await until(lambda: world.session.status()["online"])
    return target


def executed(target: FakeTarget) -> list[int]:
    return [entry[0] for entry in target.executed]


async def test_a_driver_is_carried_through_its_initialisation(world: World) -> None:
    target, driver = await starting(world)
    await world.lose(target)
    assert await do(driver.csts) == CSTS_RDY
    again = await carry_on(world)
    await until(lambda: driver.completion(1)[1:] == (2, 1))
    assert executed(again) == [CREATE_COMPLETION_QUEUE, IDENTIFY]
    assert signals(driver.interrupt) > 0
    assert await do(driver.csts) == CSTS_RDY
    assert await do(driver.client.read, Register.ASQ, 8) == ASQ, "its own, whatever the target has"
    await do(driver.consume, 2)
    for identifier in range(3, 20):
        await do(driver.submit, IDENTIFY, identifier)
        slot, phase = (identifier - 1) % 8, 1 - (identifier - 1) // 8 % 2
        await until(lambda: driver.completion(slot)[1:] == (identifier, phase))  # noqa: B023 (awaited at once)
        await do(driver.consume, (slot + 1) % 8)


async def test_what_is_submitted_while_there_is_no_target_is_carried_on_too(world: World) -> None:
    target, driver = await starting(world)
    await world.lose(target)
    await do(driver.submit, IDENTIFY, 3)
    again = await carry_on(world)
    await until(lambda: driver.completion(2)[1:] == (3, 1))
    assert executed(again) == [CREATE_COMPLETION_QUEUE, IDENTIFY, IDENTIFY]


async def test_a_driver_that_starts_over_has_its_own_queues_again(world: World) -> None:
    target, driver = await starting(world)
    await world.lose(target)
    again = await carry_on(world)
    await do(driver.disable)
    await do(driver.enable)
    assert await do(driver.csts) == CSTS_RDY
    assert [m.address for m in again.maps] == [0]
    await do(driver.submit, IDENTIFY, 9)
    assert driver.completion(0)[1:] == (9, 1)
    assert signals(driver.interrupt) > 0


async def test_a_second_crash_while_a_driver_is_carried_on(world: World) -> None:
    target, driver = await starting(world)
    await world.lose(target)
    again = await carry_on(world)
    await until(lambda: driver.completion(1)[1:] == (2, 1))
    await do(driver.consume, 2)
    again.works = False
    await do(driver.submit, IDENTIFY, 3)
    await world.lose(again)
    third = await carry_on(world)
    await until(lambda: driver.completion(2)[1:] == (3, 1))
    assert executed(third) == [CREATE_COMPLETION_QUEUE, IDENTIFY]


async def test_interrupts_set_again_while_a_driver_is_carried_on(world: World) -> None:
    target, driver = await starting(world)
    await world.lose(target)
    await carry_on(world)
    await until(lambda: driver.completion(1)[1:] == (2, 1))
    await do(driver.consume, 2)
    await do(driver.client.interrupts, [driver.interrupt])
    await do(driver.submit, IDENTIFY, 3)
    await until(lambda: driver.completion(2)[1:] == (3, 1))
