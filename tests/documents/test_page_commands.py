"""The commands of README and docs, run page by page as they stand there, on deployments of their own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from shlex import join

import pytest
from libvirtd import libvirtd
from page_blocks import ROOT, Block, blocks
from page_session import Session
from page_table import PAGES, Run
from qemus import the_qemu

from nvmuser.bench.measure.ceph_cluster import POOL, CephCluster
from nvmuser.toolchain import libvfio
from nvmuser.toolchain.steps import Reporter

BASH = ("bash",)
AS_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "bash")
"""No root, and no more rights than to the files of the user who runs the tests."""


def runs(page: str, *, matrix: bool) -> list[tuple[Block, Run]]:
    """The blocks that are run, in the order of the table; without `matrix` those that take long are left out."""
    found = {block.first: block for block in blocks(page)}
    return [
        (next(block for first, block in found.items() if first.startswith(start)), how)
        for start, how in PAGES[page].blocks.items()
        if isinstance(how, Run) and (matrix or not how.matrix)
    ]


SHORT = [page for page in PAGES if runs(page, matrix=False)]
LONG = [page for page in PAGES if len(runs(page, matrix=True)) > len(runs(page, matrix=False))]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page's directory, with the QEMU that we use as the one on the PATH."""
    work = tmp_path_factory.mktemp("p")  # a short name, for the sockets in it
    (work / "bin").mkdir()
    program = work / "bin/qemu-system-x86_64"
    program.write_text(f'#!/bin/sh\nexec {join(the_qemu("qemu-own").argv)} "$@"\n')
    program.chmod(0o755)
    if not libvfio.is_done():
        libvfio.build(Reporter(work / "libvfio.log"))
    return work


@pytest.fixture
def surroundings(page: str, work: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """What the commands of a page need besides nvmuser, as variables for them; the short ones need nothing."""
    if request.node.get_closest_marker("matrix") is None:
        yield {}
    elif page == "docs/control-plane.md":
        ceph: CephCluster = request.getfixturevalue("ceph")
        yield {"CEPH_CONF": str(ceph.conf), "CEPH_KEYRING": str(ceph.keyring), "CEPH_POOL": POOL}
    elif page == "docs/libvirt.md":
        if os.geteuid() != 0:
            pytest.skip("only root can start a libvirtd of its own")
        with libvirtd(work) as host:
            yield {"LIBVIRT_DEFAULT_URI": host.uri}
    else:
        yield {}


@pytest.fixture
def session(page: str, work: Path, surroundings: dict[str, str]) -> Session:
    values = {"work": str(work), "root": str(ROOT), "port": free_port()}
    environment = {"NVMUSER_STATE": str(work / "s"), **surroundings}
    return Session(work, values, environment, AS_USER if page == "README.md" else BASH)


@pytest.mark.parametrize("page", SHORT)
def test_commands(page: str, session: Session) -> None:
    session.run(PAGES[page].setup, PAGES[page].end, runs(page, matrix=False))


@pytest.mark.matrix
@pytest.mark.parametrize("page", LONG)
def test_long_commands(page: str, session: Session) -> None:
    session.run(PAGES[page].setup, PAGES[page].end, runs(page, matrix=True))
