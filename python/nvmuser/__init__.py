"""NVMe controllers for virtual machines, served from user space by SPDK over vfio-user."""

__version__ = "0.1.0"
