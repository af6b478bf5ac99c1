"""PCI devices written in Python, for guests of QEMU and any other client that speaks vfio-user.

A class derived from `PciDevice` declares what the device is and answers for its registers; a `Server` connects it to
one client after the other. Needs the module nvmuser_vfu (`make setup`). See docs/devices.md.
"""

from nvmuser.pci.bars import Area, Bar, Space
from nvmuser.pci.capabilities import Capability, Msi, MsiX, PciExpress, PowerManagement, Vendor
from nvmuser.pci.device import ClassCode, Identity, PciDevice, Reset
from nvmuser.pci.memory import GuestMemory, Region
from nvmuser.pci.server import Server, serve

__all__ = [
    "Area",
    "Bar",
    "Capability",
    "ClassCode",
    "GuestMemory",
    "Identity",
    "Msi",
    "MsiX",
    "PciDevice",
    "PciExpress",
    "PowerManagement",
    "Region",
    "Reset",
    "Server",
    "Space",
    "Vendor",
    "serve",
]
