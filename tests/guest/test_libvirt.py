"""libvirt's own validator on the domains that we print."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nvmuser.guest import GuestSpec, libvirt
from nvmuser.guest.spec import Firmware

SOCKETS = tuple(Path(f"/run/nvmuser/guest/vm{number}/cntrl") for number in range(2))


@pytest.mark.parametrize("firmware", ["seabios", "uefi"])
@pytest.mark.parametrize("hugepages", [True, False])
@pytest.mark.parametrize("boot_from", [None, SOCKETS[1]])
def test_the_domain_is_valid(tmp_path: Path, firmware: Firmware, hugepages: bool, boot_from: Path | None) -> None:
    spec = GuestSpec(cpus=2, sockets=SOCKETS, firmware=firmware, boot_from=boot_from)
    path = tmp_path / "domain.xml"
    image = tmp_path / "no-migration.vmdk"
    domain = libvirt.domain(spec, name="vm1", hugepages=hugepages, kvm=not hugepages, no_migration=image)
    path.write_text(domain)
    done = subprocess.run(["virt-xml-validate", path, "domain"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
