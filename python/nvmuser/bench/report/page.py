"""One run as a page: self-contained HTML that prints on A4. Terminal tables are `table`'s.

Owns which facts stand on the page; the template owns how they look.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2

from nvmuser.bench.measure.environment import describe
from nvmuser.bench.report import plots
from nvmuser.bench.report.result import JobResult, Result

MISSING = "\N{EN DASH}"
"""Stands where nothing was measured."""
NOISY_MACHINE = 0.10
"""From here on a reader is warned."""
QUIET_MACHINE = 0.05
"""Up to here no caution is given."""


def _environment() -> jinja2.Environment:
    def source(name: str) -> str | None:
        resource = files("nvmuser.bench.report") / "templates" / name
        return resource.read_text(encoding="utf-8") if resource.is_file() else None

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "si": plots.si,
        "duration": lambda value: MISSING if value != value else plots.duration(value),
        "percent": lambda value: MISSING if value is None else f"{value:.0f} %",
        "micros": lambda value: MISSING if value is None else f"{value:.1f} µs",
        "bandwidth": bandwidth,
    }
    return environment


def bandwidth(value: float) -> str:
    """Bytes a second in MiB/s, as fio has it."""
    mib = value / (1 << 20)
    return f"{mib:,.0f} MiB/s" if mib >= 100 else f"{mib:.1f} MiB/s"


def render(template: str, **values: Any) -> str:
    """A page from a template of this package."""
    return _environment().get_template(template).render(**values)


def facts(result: Result) -> list[tuple[str, str]]:
    """What was measured on, in the order in which a reader asks."""
    environment, guest, versions = result.environment, result.guest, result.versions
    noise = environment.get("noise")
    pages = environment["hugepages_total"] * environment["hugepage_bytes"] >> 20
    cpus = "1 CPU" if guest["cpus"] == 1 else f"{guest['cpus']} CPUs"
    accelerator = "KVM" if result.accelerator == "kvm" else "software emulation (TCG)"
    return [
        ("Guest", f"{cpus}, {guest['memory_bytes'] >> 20} MiB, {accelerator}, kernel {versions['guest_kernel']}"),
        ("Disks", ", ".join(guest["disks"])),
        ("Software", f"SPDK {versions['spdk']}, QEMU {versions['qemu']}, {versions['fio']}"),
        ("Host", describe(environment)),
        ("Frequency governor", environment["governor"] or "not visible (a virtual machine, or none)"),
        ("Hugepages", f"{pages} MiB" if pages else "none: 4 KiB pages"),
        ("Noise", "not measured" if noise is None else f"{noise * 100:.0f} % of an idle spin's time was taken away"),
    ]


def busy(noise: float | None) -> str | None:
    """A warning for a reader, where the machine was not quiet."""
    if noise is None or noise <= NOISY_MACHINE:
        return None
    return f"This machine was busy with something else: {noise * 100:.0f} % of an idle spin's time was taken away."


def restless(noise: float | None) -> str | None:
    """A note, where the machine was not quite quiet."""
    if noise is None or not QUIET_MACHINE < noise <= NOISY_MACHINE:
        return None
    return f"This machine was not quite quiet ({noise * 100:.0f} %): small differences may be its doing."


def cost(job: JobResult) -> str:
    """Host CPU by process, in one line."""
    return ", ".join(f"{name} {percent:.0f} %" for name, percent in job.cpu.host_percent.items()) or MISSING


def html(result: Result, title: str = "Benchmark in the guest") -> str:
    """The whole page."""
    return render(
        "result.html.j2",
        title=title,
        result=result,
        warning=busy(result.environment.get("noise")),
        facts=facts(result),
        costs=[cost(job) for job in result.jobs],
        over_time=plots.over_time(result.jobs),
        percentiles=plots.percentiles([job for job in result.jobs if job.total_ios]),
    )
