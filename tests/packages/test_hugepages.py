"""Hugepages under the service: what docs/packages.md says lets its target use them; without it, it runs without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from container import Container
from test_debian import install, status

from nvmuser.bench.measure.hugepage_loan import borrowed_hugepages

pytestmark = pytest.mark.matrix

EXAMPLE = "/usr/share/doc/nvmuser/examples/nvmuser-hugepages.tmpfiles"
WRITE_AND_READ = """
fio --name=w --filename=/dev/nvme0n1 --rw=randwrite --bs=4k --iodepth=8 --ioengine=io_uring --direct=1 --size=16m \
    --verify=crc32c --verify_fatal=1
"""


@pytest.fixture
def pages() -> Iterator[None]:
    """Enough for a target and for one that takes its place."""
    with borrowed_hugepages(1 << 30) as lacking:
        if lacking:
            pytest.skip(lacking)
        yield


@pytest.mark.usefixtures("pages")
def test_the_service_uses_hugepages_once_its_user_is_let_in(container: Container) -> None:
    container.apt("update")
    install(container, "/debs")
    container.run("systemctl", "start", "nvmuser")
    assert not uses_hugepages(container)
    container.run("cp", EXAMPLE, "/etc/tmpfiles.d/nvmuser-hugepages.conf")
    container.run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/nvmuser-hugepages.conf")
    container.run("nvmuser", "target", "upgrade")
    assert uses_hugepages(container)
    container.run("nvmuser", "volume", "create", "disk", "--size", "64M")
    container.run("nvmuser", "controller", "create", "c0", "--attach", "disk")
    container.run("nvmuser", "guest", "run", "--controller", "c0", "--memory", "512M", "--", "sh", "-c", WRITE_AND_READ)
    container.run("systemctl", "restart", "nvmuser")
    assert uses_hugepages(container)


def uses_hugepages(container: Container) -> bool:
    target = status(container)["target"]
    assert isinstance(target, dict)
    return bool(target["hugepages"])
