"""What becomes of each code block of README and docs: how it is run, or why not. The one list of all of them.

A block is named by how its first line begins. Those of a page that are run are run in the order of this table, in one
shell, on a deployment of its own. `tests/unit/test_page_table.py` fails for a block that is not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Run:
    """It is run as it stands, but for this.

    :param replaced: text → what stands for it here.
    :param before: how a command begins → shell before it.
    :param wrap: what runs a block that is not shell; `BLOCK` stands for it.
    :param status: of its commands.
    :param matrix: it takes long.
    """

    replaced: Mapping[str, str] = field(default_factory=dict)
    before: Mapping[str, str] = field(default_factory=dict)
    wrap: str | None = None
    status: int = 0
    matrix: bool = False


@dataclass(frozen=True)
class Elsewhere:
    """A test of another file runs the same commands, in an environment that it makes.

    :param test: file and function.
    """

    test: str


@dataclass(frozen=True)
class Not:
    """Nothing to run, or not here, for this reason."""

    reason: str


@dataclass(frozen=True)
class Page:
    """:param setup: shell before the first block; `end` follows the last one, and a failure."""

    blocks: Mapping[str, Run | Elsewhere | Not]
    setup: str = ""
    end: str = ":"


DRAWING = Not("a drawing")
CHECKED_BY_CI = Not("what CI itself calls, and so what runs this test")

_API_READY = "until curl -s http://127.0.0.1:{port}/healthz >/dev/null; do sleep 0.1; done"
_STOP = "nvmuser target stop"
_SERVED = """
nvmuser target start
nvmuser volume create data --size 64M
nvmuser controller create c0 --attach data
"""
_ETCD = """
export ${!ETCD_*}
background {work}/etcd-data/member/snap/db etcd --data-dir {work}/etcd-data --listen-peer-urls http://127.0.0.1:0
until curl -s --cacert ca.pem --cert admin.pem --key admin.key https://127.0.0.1:{port}/health; do sleep 0.1; done
"""
_TWO_HOSTS = """
nvmuser guest stop box
in_here() { export NVMUSER_STATE={work}/other; }
in_there() { export NVMUSER_STATE={work}/s; }
ssh() { (in_there; shift; "$@"); }
"""
_PYTHON = "python3 - <<'EOF'\n"

PAGES: dict[str, Page] = {
    "ARCHITECTURE.md": Page({"operator ": DRAWING, "spdk-glue/ ": DRAWING}),
    "CONTRIBUTING.md": Page({"make setup": CHECKED_BY_CI}),
    "CHANGELOG.md": Page({}),
    "README.md": Page(
        {
            "guest ": DRAWING,
            "make demo": CHECKED_BY_CI,
            "job ": Not("the table that `make demo` has printed; tests/guest/test_bench.py runs what it runs"),
            "$ export PATH": Run(
                {
                    "no hugepages (…)": "…",  # as many as the machine has
                    "PATH=$PWD/.venv/bin:$PATH NVMUSER_STATE": "PATH=$ROOT/.venv/bin:$PATH NVMUSER_STATE",
                }
            ),
            "$ nvmuser guest run": Run(),
            '$ eval "$(nvmuser guest qemu-args c0)': Run(
                # Ctrl-A x, by which a person leaves QEMU
                {"eval": r"printf '\001x' | eval"},
                before={"printf": "truncate -s 1M system.qcow2"},
            ),
            "$ nvmuser bench recovery": Run(matrix=True),
            "$ .venv/bin/python samples/gpio": Run(
                {
                    ".venv/bin/python samples": "background {work}/gpio.sock python3 {root}/samples",
                    "/tmp/gpio.sock": "{work}/gpio.sock",
                    "qemu-system-x86_64 …": r"printf '\001x' | qemu-system-x86_64 -nographic -m 256M "
                    "-machine q35,memory-backend=mem -object memory-backend-memfd,id=mem,size=256M,share=on",
                }
            ),
        },
        end="nvmuser target stop; rm -r $NVMUSER_STATE; test ! -e $NVMUSER_STATE",
    ),
    "docs/api.md": Page(
        {
            "$ nvmuser target start": Run({"8460": "{port}"}, before={"TOKEN=": _API_READY}),
            "with Client": Run(
                {"https://host2:8460": "http://127.0.0.1:{port}", "10G": "1100M"},
                before={_PYTHON: "export TOKEN"},
                wrap=f"{_PYTHON}import os\nfrom nvmuser.client import Client\n"
                "token = os.environ['TOKEN']\nBLOCK\nassert event\nEOF",
            ),
            "$ curl -sN": Run(
                # An event stream has no end: it is read up to the event that is shown.
                {"8460": "{port}", "curl -sN": "sed '/\"volume\"/q' < <(curl -sN", "after=0'": "after=0')"},
            ),
            "$ nvmuser sma serve": Run({"nvmuser sma": "served nvmuser sma", ":8080": ":0"}),
        },
        end='kill "$(pgrep -f "serve --listen {port}")" || true; nvmuser target stop',
    ),
    "docs/benchmarks.md": Page({}),
    "docs/cli.md": Page({"$ nvmuser volume show": Run(status=1)}),
    "docs/cloud-hypervisor.md": Page(
        {
            "eval": Run(
                # Cloud Hypervisor is in no Debian: its command line is what can be looked at here.
                before={"eval": 'cloud-hypervisor() { echo "$*" | tee line; }'}
            ),
        },
        setup="nvmuser controller create vm1",
        end="grep -q -- '--user-device socket=.*--kernel vmlinux --disk path=system.raw' line",
    ),
    "docs/control-plane.md": Page(
        {
            "volume, controller": DRAWING,
            "version: 1": Run(
                {
                    "/etc/ceph/ceph.conf": "{work}/ceph.conf",
                    ", owner: libvirt-qemu": "",
                    "100G": "1G",
                    "[2, 3]": "[0, 1]",
                },
                wrap="touch ceph.conf; nvmuser apply --dry-run -f - <<'EOF'\nBLOCK\nEOF",
            ),
            "nvmuser setup --with rbd": Run(
                {
                    "nvmuser setup": ": before the tests:",
                    "/etc/ceph/ceph.conf": "$CEPH_CONF",
                    "--user vms --keyring /etc/ceph/ceph.client.vms.keyring": "--keyring $CEPH_KEYRING",
                    "--pool-name vms": "--pool-name $CEPH_POOL",
                    "20G": "64M",
                },
                before={":": "nvmuser target start"},
                matrix=True,
            ),
        },
        end=_STOP,
    ),
    "docs/monitoring.md": Page(
        {
            "$ nvmuser token create prometheus": Run({"/etc/prometheus": "{work}"}),
            "rule_files:": Run(
                {"/etc/prometheus": "{work}"},
                wrap="cat > prometheus.yml <<'EOF'\nBLOCK\nEOF\npromtool check config prometheus.yml",
            ),
            "$ nvmuser top": Run(),
        },
        setup=_SERVED,
        end=_STOP,
    ),
    "docs/devices.md": Page(
        {
            "class Counter": Run(
                {"/tmp/counter.sock": "counter.sock", "asyncio.run(": "print('serving', flush=True)\nasyncio.run("},
                wrap="cat > counter.py <<'EOF'\nimport asyncio\nfrom pathlib import Path\n"
                "from nvmuser.pci import Bar, ClassCode, Identity, Msi, PciDevice, serve\nBLOCK\nEOF\n"
                "served python3 counter.py",
            ),
        },
    ),
    "docs/fleet.md": Page(
        {
            "apt-get install": Run(
                {"apt-get install": ": installed:", "ADDRESS": "127.0.0.1", ":2379": ":{port}", "/etc/etcd": "{work}"},
                matrix=True,
            ),
            "nvmuser fleet init": Run(
                {"etcd1:2379": "127.0.0.1:{port}", "--adopt": "--name h1 --adopt"},
                before={"nvmuser fleet init": f"{_ETCD}echo 'version: 1' > fleet.yaml"},
                matrix=True,
            ),
            "nvmuser fleet tenant": Run({"100G": "64M"}, matrix=True),
            "controllers:": Elsewhere("tests/fleet/test_fleet.py::test_labels_and_rules_decide_where"),
            "nvmuser fleet move": Elsewhere("tests/fleet/test_fleet_moves.py::test_a_forced_move_fences_first"),
            "h1$ nvmuser guest start": Elsewhere(
                "tests/fleet/test_fleet_guests.py::test_a_guest_moves_while_it_writes"
            ),
        },
        setup="nvmuser target start",
        end=_STOP,
    ),
    "docs/guests.md": Page(
        {
            "The vmdk format": Not("QEMU's answer: tests/guest/test_migration.py looks for it"),
            "-blockdev": Not(
                "an argument for a command line of one's own: `qemu-args` prints it, which README's page runs"
            ),
        }
    ),
    "docs/initiator.md": Page(
        {
            "from nvmuser": Run(
                {"/tmp/tour": "{work}/s", "\n": "\n    "},
                wrap="python3 - <<'EOF'\nimport asyncio\nasync def main():\n    BLOCK\n"
                "from nvmuser.initiator import allocate\nbuffer = allocate(4096)\nasyncio.run(main())\n"
                "assert bytes(buffer.view) == bytes([0x5a]) * 4096\nEOF",
            ),
            "nvmuser bench host": Run({"host": "host --rounds 1 --seconds 1"}, matrix=True),
        },
        setup=_SERVED,
        end=_STOP,
    ),
    "docs/kubernetes.md": Page(
        {
            "nvmuser csi serve": Run({"nvmuser csi": "served nvmuser csi", "/csi/csi.sock": "{work}/csi.sock"}),
            "-object": Not(
                "arguments for a command line of one's own: `qemu-args` prints them, which README's page runs"
            ),
        }
    ),
    "docs/libvirt.md": Page(
        {
            "nvmuser guest qemu-args vm1 --libvirt": Run(
                {"> vm1.xml": "| sed s,/usr/bin/qemu-system-x86_64,{work}/qemu, > vm1.xml"},  # where ours is
                before={"nvmuser guest": "nvmuser controller create vm1"},
                matrix=True,
            ),
            "<metadata>": Run(wrap="xmllint --noout - <<'EOF'\nBLOCK\nEOF"),
            "nvmuser guest qemu-args vm1 --via libvfio --libvirt --memory": Elsewhere(
                "tests/guest/test_libvirt_migrate.py::test_there_and_back_while_it_writes"
            ),
            "nvmuser guest qemu-args vm1 --via libvfio --libvirt |": Run(
                {" --live": ""},
                matrix=True,  # it does not run
            ),
        },
    ),
    "docs/migration.md": Page(
        {
            "$ nvmuser guest start": Run({"/var/lib/other": "{work}/other"}, matrix=True),
            "$ nvmuser guest suspend": Run(
                {"/var/tmp": "{work}"},
                before={"nvmuser guest suspend": "export NVMUSER_STATE={work}/other"},
                matrix=True,
            ),
            "here$  nvmuser": Run(
                # The QEMU there waits in vain for a guest, and is ended: the QMP commands that follow are QEMU's own.
                {
                    "$(nvmuser guest qemu-args c0 --via libvfio) …": "background {work}/qmp "
                    "$(nvmuser guest qemu-args c0 --via libvfio --memory 256M --no-hugepages)",
                    "-qmp …": "-display none -nodefaults -qmp unix:{work}/qmp,server=on,wait=off",
                },
                before={"nvmuser controller show": _TWO_HOSTS},
                matrix=True,
            ),
            "there: {": Elsewhere("tests/guest/test_travel.py::test_over_tcp"),
        },
        setup=f"export NVMUSER_STATE={{work}}/other; nvmuser target start; export NVMUSER_STATE={{work}}/s{_SERVED}",
        end="""
for state in s other; do export NVMUSER_STATE={work}/$state; nvmuser guest stop box || true; nvmuser target stop; done
""",
    ),
    "docs/packages.md": Page(
        {
            "make deb": Elsewhere("tests/packages/test_debian.py::test_a_life_of_the_packages"),
            "ci/test-installed": Not("the test suite itself"),
            "pip install": Elsewhere("tests/packages/test_wheel.py::test_pip_gets_all_that_it_depends_on"),
        }
    ),
    "docs/performance.md": Page(
        {
            "nvmuser bench compare": Run(
                {"compare": "compare --rounds 1 --runtime 0.5 --only randread-4k-qd32 --peers endpoint,nvme"},
                matrix=True,
            ),
            "nvmuser bench host": Run({"bench host": "bench host --rounds 1 --seconds 1"}, matrix=True),
            "nvmuser bench tune": Run(
                {"bench tune": "bench tune --rounds 1 --runtime 0.5 --variants plain-irq"}, matrix=True
            ),
        }
    ),
    "docs/releasing.md": Page(
        {"ci/release-check": Elsewhere("tests/unit/test_release_check.py::test_a_release_that_is_right")}
    ),
    "docs/security.md": Page({}),
    "docs/survival.md": Page(
        {
            "nvmuser target unit": Run(
                # systemd as process 1, with this unit: tests/guest/test_systemd.py
                {
                    "/etc/systemd/system": "{work}",
                    "systemctl enable --now nvmuser": "systemd-analyze verify {work}/nvmuser.service",
                }
            ),
            "nvme0c0n1:": Not("what Linux may log: tests/guest/test_recovery.py knows these lines"),
        }
    ),
    "docs/troubleshooting.md": Page({}),
    "nvmf_vfio/libvfio/README.md": Page({"$ nvmuser guest qemu-args": Run()}, setup=_SERVED, end=_STOP),
}
