"""What a guest sees of a device in Python: identity, configuration space, capabilities."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from pci_device import CONFIG, Everything, capabilities, config, connect, off_loop
from vfio_guest import Client, Refusal

from nvmf_vfio.protocol.header import Command
from nvmf_vfio.protocol.messages import RegionInfo
from nvmuser.errors import UsageError
from nvmuser.paths import SETUP, packaged_dir
from nvmuser.pci import Msi, MsiX, PciExpress, PowerManagement, Server, Vendor
from nvmuser.toolchain import find_spdk


async def test_a_guest_sees_what_is_declared(client: Client) -> None:
    def look() -> None:
        assert (config(client, 0, 4), config(client, 0x2C, 4)) == (0x5678_1234, 0xDEF0_9ABC)
        assert config(client, 8, 4) == 0x12345607
        assert [config(client, 0x10 + 4 * bar, 4) for bar in range(6)] == [0, 1, 1, 1, 4, 1]
        assert config(client, 0x3D, 1) == 1, "INTA#"
        places = capabilities(client)
        assert list(places) == [PowerManagement.ID, Msi.ID, MsiX.ID, PciExpress.ID, Vendor.ID]
        assert config(client, places[Vendor.ID] + 3, 4).to_bytes(4, "little") == b"nvmu"
        with pytest.raises(Refusal):
            client.write(places[Vendor.ID] + 4, 1, 0, CONFIG)
        for index, count in ((0, 1), (1, 4), (2, 8)):
            reply = client.call(Command.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, index, 0))
            assert struct.unpack("<IIII", reply)[3] == count

    await off_loop(look)


async def test_a_conventional_device_has_256_bytes_of_configuration_space(path: Path) -> None:
    class Conventional(Everything):
        capabilities = (PowerManagement(),)

    async with Server(Conventional(), path):
        client = await off_loop(connect, path)
        reply = await off_loop(client.call, Command.DEVICE_GET_REGION_INFO, RegionInfo(32, 0, CONFIG).pack())
        assert RegionInfo.unpack(reply).size == 256
        assert await off_loop(config, client, 248, 8) == 0
        with pytest.raises(Refusal):
            await off_loop(config, client, 252, 8)
        client.close()


async def test_configuration_space_of_its_own(device: Everything, client: Client) -> None:
    device.config_put(0xF00, 4, 0xCAFE)
    assert await off_loop(config, client, 0xF00, 4) == 0xCAFE
    await off_loop(client.write, 0xF00, 4, 1, CONFIG)
    assert device.config_get(0xF00, 4) == 0xCAFE, "a reserved register ignores writes"
    with pytest.raises(UsageError, match="has 4096"):
        device.config_get(4094, 4)


@pytest.mark.parametrize(("offset", "size"), [(8, 12), (11, 2), (0, 8), (3, 4)])
async def test_a_write_that_no_bus_could_carry_never_gets_to_the_library(
    device: Everything, client: Client, path: Path, offset: int, size: int
) -> None:
    """It copies such writes to a capability over its own stack."""
    place = (await off_loop(capabilities, client))[MsiX.ID]
    with pytest.raises(EOFError):
        await off_loop(client.write, place + offset, size, (1 << 8 * size) - 1, CONFIG)
    assert device.config_get(place + 2, 2) == 7, "not carried out"
    (await off_loop(connect, path)).close()


@pytest.mark.skipif(packaged_dir() is not None, reason="packages bring the module")
def test_no_module_says_so(tmp_path: Path) -> None:
    """What a device declares is known without; serving it fails, and the error says how to get the module."""
    code = f"""
import asyncio
from pathlib import Path
from nvmuser.pci import ClassCode, Identity, PciDevice, serve
class Device(PciDevice):
    identity = Identity(vendor=0x1234, device=1)
    class_code = ClassCode(0xFF, 0)
asyncio.run(serve({{Path({str(tmp_path / "device.sock")!r}): Device()}}))
"""
    env = {**os.environ, "NVMUSER_CACHE": str(tmp_path), "NVMUSER_SPDK": str(find_spdk().prefix)}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=env, timeout=60)
    assert done.returncode == 1
    assert "SetupError: nvmuser_vfu has not been built" in done.stderr
    assert SETUP in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("*.sock"))
