"""A session's link to the current target: connects to it, replays what the guest has given its predecessors, and helps
a driver on that was setting its controller up.

Owns the connection to the target, the admin proxy on it, and the task that brings both up. What the guest sees of it is
`nvmf_vfio.session`'s, what is replayed `nvmf_vfio.state.controller`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from nvmf_vfio.link import TargetError, TargetLink, connect
from nvmf_vfio.migration import positions
from nvmf_vfio.pending import Pending
from nvmf_vfio.protocol.descriptors import Descriptor
from nvmf_vfio.protocol.header import FROM_TARGET, Command, Header, ProtocolError
from nvmf_vfio.protocol.messages import DmaMap, DmaUnmap, RegionAccess, Reset, SetIrqs
from nvmf_vfio.protocol.version import Version
from nvmf_vfio.protocol.wire import Message
from nvmf_vfio.proxy import AdminProxy
from nvmf_vfio.state.config_space import CONFIG
from nvmf_vfio.state.controller import Controller
from nvmf_vfio.state.history import Positions
from nvmf_vfio.state.lifecycle import Phase
from nvmf_vfio.state.memory import GuestMemoryError
from nvmf_vfio.state.registers import BAR0, CC_EN, Register

log = logging.getLogger(__name__)

_FIRST_RETRY = 0.05
_RETRY_INTERVAL = 1.0
"""Seconds between attempts at most; the first come sooner, since a guest waits."""
_CONFIG_SPACE = 4096


class Uplink:
    """The link to one target after another.

    :param is_target_ready: whether the supervisor has reported the target as ready.
    :param on_request: called with each request that the target makes (DMA by message).
    :param on_online: called after `bring_up`, once the target has the guest's state.
    :param on_lost: called when the target is gone before the supervisor has reported it.
    :param save: records the controller.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        controller: Controller,
        *,
        is_target_ready: Callable[[], bool],
        on_request: Callable[[Header, bytes, list[Descriptor]], None],
        on_online: Callable[[], None],
        on_lost: Callable[[], None],
        save: Callable[[], None],
    ) -> None:
        self.online = False
        self.link: TargetLink | None = None
        self.proxy: AdminProxy | None = None
        self._name = name
        self._path = path
        self._controller = controller
        self._is_target_ready = is_target_ready
        self._on_request = on_request
        self._on_online = on_online
        self._on_lost = on_lost
        self._save = save
        self._requests: set[int] = set()
        self._introducing = False
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._open = True

    def bring_up(self) -> None:
        """A target serves this controller (again)."""
        if self._task is None and self._open:
            self._task = self._loop.create_task(self._introduce())

    def drop(self) -> None:
        """The target is gone, or goes. Idempotent."""
        if self._task:
            self._task.cancel()
            self._task = None
        self._disconnect()
        self.online = False

    def detach(self) -> TargetLink | None:
        """Go offline, and hand over the connection to a target in which the controller may be enabled; see `leave`.

        A target that is not online has enabled nothing, but for the admin proxy.
        """
        link = self.link if self.online or self.proxy else None
        if link:
            if self.proxy:
                self.proxy.flush()
            self.link = None
        self.drop()
        return link

    async def leave(self, link: TargetLink) -> bool:
        """End all I/O of a controller at its target: nothing of it can land in guest memory any more when this returns.

        Its CPUs run, and the driver goes on to send commands: CC.EN=0 will not do, for SPDK completes what comes then
        with errors, some of it twice, and Linux 6.12 has been seen to panic over that (`nvme_retry_req`). SPDK takes a
        guest that hangs up for one that is gone, and answers another connection when everything of it has ended.

        :returns: False when the target was lost meanwhile.
        """
        assert self._controller.version is not None
        link.close()
        probe = TargetLink(await connect(self._path), Message.close, lambda: None)
        try:
            await probe.call(Command.VERSION, self._controller.version.pack())
        except TargetError:
            return False
        finally:
            probe.close()
        return True

    def close(self) -> None:
        """The guest is gone. Idempotent."""
        self._open = False
        self.drop()

    def _disconnect(self) -> None:
        if self.proxy:
            self.proxy.close()
            self.proxy = None
        if self.link:
            link, self.link = self.link, None
            link.close()
        self._requests.clear()

    def _connection_lost(self) -> None:
        """The connection ended before the supervisor reported anything. It will, unless the target is alive."""
        self._disconnect()
        if self._task and not self._task.done():
            return
        self._on_lost()
        self._loop.call_later(_RETRY_INTERVAL, self._retry)

    def _retry(self) -> None:
        if self._is_target_ready():
            # A live target answers on a new connection only when everything of the old one has ended. A dead one whose
            # end is not reported yet does not answer, and is not drained.
            self.bring_up()

    # -- introducing the guest -----------------------------------------------------------------------------------

    async def _introduce(self) -> None:
        pause = _FIRST_RETRY
        while True:
            try:
                self.link = TargetLink(await connect(self._path), self._requested, self._connection_lost)
                if self._controller.version is not None:
                    await self._replay(self.link)
                    await self._carry_on(self.link)
                break
            except (TargetError, ProtocolError, OSError) as error:
                log.error("%s: the target refuses the guest's state: %s", self._name, error)
                self._disconnect()
            finally:
                self._introducing = False
            await asyncio.sleep(pause)
            pause = min(2 * pause, _RETRY_INTERVAL)
        # No message of the guest's can come between this and `on_online`.
        self.online = True
        self._on_online()

    async def _replay(self, link: TargetLink) -> None:
        assert self._controller.version is not None
        await link.call(Command.VERSION, self._controller.version.pack())
        calls = [link.call(*call) for call in self._controller.replay()]
        self._introducing = True
        try:
            await asyncio.gather(*calls)
        finally:
            for call in calls:
                call.cancel()

    async def _carry_on(self, link: TargetLink) -> None:
        """Take a driver through the rest of its controller's initialisation, or give the target its queues."""
        controller = self._controller
        if controller.phase is Phase.STARTING:
            await self._act_for_driver(link, {})
            log.info("%s: carrying the driver on through its initialisation", self._name)
        elif controller.phase is Phase.RESUMABLE:
            if not (controller.is_signalled and await positions.are_known_to(link)):
                controller.positions_lost()
                return
            taken = controller.take_positions()
            # From here on it may move them: a successor of this process must not take them for true.
            self._save()
            try:
                await self._act_for_driver(link, taken)
            except BaseException:
                controller.positions_lost()
                raise
            log.info("%s: %d queues go on where they were", self._name, len(taken))

    async def _act_for_driver(self, link: TargetLink, begin: Positions) -> None:
        controller, phase = self._controller, self._controller.phase
        interrupts = controller.interrupts
        vector_index, _ = interrupts.admin
        self.proxy = AdminProxy(
            link, controller.admin, controller.memory, interrupt=interrupts.signal_admin, vector_index=vector_index
        )
        try:
            await self.proxy.start(controller.cc, begin)
        except GuestMemoryError as error:
            raise TargetError(f"the guest's admin queue is gone: {error}") from error
        if controller.phase is not phase:
            raise TargetError("the driver has started over")

    def end_proxy(self) -> None:
        """End the proxy: the driver disables its controller, and sets up its own queues next."""
        proxy, self.proxy = self.proxy, None
        if proxy:
            _, stored = self._controller.interrupts.admin
            proxy.end(stored.descriptor if stored else None)

    # -- messages ----------------------------------------------------------------------------------------------

    def forward(self, pending: Pending, on_reply: Callable[[Pending, Message], None]) -> None:
        """Pass a guest's request on to the target, which is online; `on_reply` gets both."""
        assert self.link is not None
        if pending.command is Command.DEVICE_RESET and self._controller.cc & CC_EN:
            # SPDK's reset leaves the controller enabled, and would go on to read queues in memory that is used again.
            disabled = (self._controller.cc & ~CC_EN).to_bytes(4, "little")
            body = RegionAccess(Register.CC, BAR0, len(disabled), disabled).pack()
            self.link.request(Command.REGION_WRITE, body, [], Message.close)
        if pending.command is Command.VERSION:
            assert isinstance(pending.request, Version)
            # A second socket for the target's own requests would bypass this process.
            capabilities = {k: v for k, v in pending.request.capabilities.items() if k != "twin_socket"}
            pending.request = Version(pending.request.major, pending.request.minor, capabilities)
            pending.body = pending.request.pack()
        copies = [stored.descriptor.duplicate() for stored in pending.stored]
        self.link.request(pending.command, pending.body, copies, lambda reply: on_reply(pending, reply))

    def _requested(self, message: Message) -> None:
        """Pass on a request of the target's, which reads or writes guest memory by message; the guest answers it."""
        if message.header.command not in FROM_TARGET:
            message.close()
            raise ProtocolError(f"command {message.header.command} from the target")
        self._requests.add(message.header.id)
        self._on_request(message.header, message.body, message.descriptors)

    def pass_reply(self, message: Message) -> None:
        """Pass a guest's reply on, if it is to a request of this target's."""
        if self.link and message.header.command in FROM_TARGET and message.header.id in self._requests:
            self._requests.discard(message.header.id)
            self.link.reply(message)

    # -- the guest's state ----------------------------------------------------------------------------------------

    def send_registers(self) -> None:
        """Send the registers that the guest has written while the target could not see it."""
        for command, body, _ in self._controller.replay_registers():
            if self.link:
                self.link.request(command, body, [], Message.close)

    def have_it_look(self) -> None:
        """Have the target look at the queues: a doorbell that was answered here may have been for one of them.

        One that sleeps does so at each message (`vfio_user_ctrlr_intr` in SPDK's lib/nvmf/vfio_user.c).
        """
        if self.link:
            self.link.request(Command.REGION_READ, RegionAccess(Register.CSTS, BAR0, 4).pack(), [], Message.close)

    def mirror(self, pending: Pending) -> None:
        """Send a request that is answered here to the target too, while it is receiving the state that this changes."""
        if not self._introducing or not self.link:
            return
        request = pending.request
        is_config = isinstance(request, RegionAccess) and bool(request.data) and request.region == CONFIG
        if is_config or isinstance(request, DmaMap | DmaUnmap | SetIrqs | Reset):
            copies = [stored.descriptor.duplicate() for stored in pending.stored]
            self.link.request(pending.command, pending.body, copies, Message.close)

    async def prefetch(self) -> None:
        """Read what must be known when there is no target: CAP, VS and configuration space. A failure is logged."""
        link = self.link
        if link is None:
            return
        wanted = ((BAR0, Register.CAP, 8), (BAR0, Register.VS, 4), (CONFIG, 0, _CONFIG_SPACE))
        try:
            for region, offset, count in wanted:
                body = await link.call(Command.REGION_READ, RegionAccess(offset, region, count).pack())
                data = RegionAccess.unpack(body, with_data=True).data
                if len(data) != count:
                    raise ProtocolError(f"{len(data)} bytes for {count}")
                self._controller.learn(region, offset, data)
        except (TargetError, ProtocolError) as error:
            log.warning("%s: registers not read: %s", self._name, error)
