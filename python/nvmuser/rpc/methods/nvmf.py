"""What a guest sees: the transport, subsystems, namespaces and listeners. Errors and units: see the package."""

from __future__ import annotations

from nvmuser.rpc.methods.request import Request

ACCEPTOR_POLL_US = 100_000
"""How often each idle listener looks for a guest. At SPDK's 10 ms, 500 idle listeners halve the throughput of
a busy controller; at 1 s they cost nothing, but a guest waits that long after its target came back. 100 ms is
between."""

IRQ_WAIT_US, IRQ_WAIT_ENTRIES = 200, 16
"""How long an interrupt may wait for more completions, and for how many, while commands are outstanding (a parameter
of our patch; other builds of SPDK ignore it). Measured in docs/benchmarks.md: more IOPS at depth 32, none lost at
depth 1, where nothing else is outstanding and nothing waits."""

MODEL_NUMBER = "nvmuser"


def create_transport() -> Request:
    """Doorbells trapped and shadow doorbells on: what recovery (`nvmf_vfio`) needs, and interrupt mode too.

    lib/nvmf/nvmf_rpc.c and lib/nvmf/vfio_user.c. `acceptor_poll_rate` and `irq_coalescing_us` are in microseconds.

    Errors: -32603 when there is one already.
    """
    return Request(
        "nvmf_create_transport",
        {
            "trtype": "VFIOUSER",
            "disable_mappable_bar0": True,
            "acceptor_poll_rate": ACCEPTOR_POLL_US,
            "irq_coalescing_us": IRQ_WAIT_US,
            "irq_coalescing_entries": IRQ_WAIT_ENTRIES,
        },
    )


def create_subsystem(nqn: str, serial: str, cntlid: int, max_namespaces: int) -> Request:
    """One controller id only, so that a guest's controller keeps its id when it connects again.

    lib/nvmf/nvmf_rpc.c.

    :param serial: up to 20 ASCII characters (NVM Express Base Specification, Identify Controller, SN).
    :param cntlid: 1 to FFEFh.
    :param max_namespaces: the highest number of a namespace.

    Errors: -32603, with SPDK's text, when the NQN is in use or the target has room for no more.
    """
    return Request(
        "nvmf_create_subsystem",
        {
            "nqn": nqn,
            "serial_number": serial,
            "model_number": MODEL_NUMBER,
            "allow_any_host": True,
            "max_namespaces": max_namespaces,
            "min_cntlid": cntlid,
            "max_cntlid": cntlid,
        },
    )


def delete_subsystem(nqn: str) -> Request:
    """Disconnect the guest and delete the subsystem with its namespaces and listeners (lib/nvmf/nvmf_rpc.c).

    Errors: -32602 when there is none of this NQN.
    """
    return Request("nvmf_delete_subsystem", {"nqn": nqn})


def add_namespace(nqn: str, nsid: int, bdev: str, *, uuid: str, nguid: str, eui64: str) -> Request:
    """Show a bdev to the guest (lib/nvmf/nvmf_rpc.c).

    :param nsid: its number, from 1.
    :param uuid: with hyphens.
    :param nguid: 32 hexadecimal digits.
    :param eui64: 16 hexadecimal digits.

    Errors: -32602 for a bdev that is not there or claimed, a number in use, or a core without events for AIO.
    """
    namespace = {"nsid": nsid, "bdev_name": bdev, "uuid": uuid, "nguid": nguid, "eui64": eui64}
    return Request("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": namespace})


def remove_namespace(nqn: str, nsid: int) -> Request:
    """Take a namespace away; a connected guest is notified (lib/nvmf/nvmf_rpc.c).

    :param nsid: its number, from 1.

    Errors: -32602 when there is no such subsystem or namespace.
    """
    return Request("nvmf_subsystem_remove_ns", {"nqn": nqn, "nsid": nsid})


def add_listener(nqn: str, directory: str) -> Request:
    """Listen for a guest (lib/nvmf/nvmf_rpc.c, lib/nvmf/vfio_user.c).

    :param directory: of the socket `cntrl`; it has to exist.

    Errors: -32602 when it does not, or another listener is there.
    """
    address = {"trtype": "VFIOUSER", "traddr": directory, "trsvcid": "0"}
    return Request("nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": address})


def remove_listener(nqn: str, directory: str) -> Request:
    """End the guest's connection; answered after its requests have been (lib/nvmf/nvmf_rpc.c).

    :param directory: as given to `add_listener`.

    Errors: -32602 when there is no such listener.
    """
    address = {"trtype": "VFIOUSER", "traddr": directory, "trsvcid": "0"}
    return Request("nvmf_subsystem_remove_listener", {"nqn": nqn, "listen_address": address})


def allow_any_host(nqn: str) -> Request:
    """Admit every host NQN: who may connect is decided by the mode of the socket (lib/nvmf/nvmf_rpc.c)."""
    return Request("nvmf_subsystem_allow_any_host", {"nqn": nqn, "allow_any_host": True})
