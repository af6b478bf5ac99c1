"""`nvmuser doctor`."""

from __future__ import annotations

import click

from nvmuser import doctor as checks
from nvmuser.cli.options import json_option
from nvmuser.cli.present import say
from nvmuser.doctor.check import Finding, Level
from nvmuser.paths import StateDir

_MARKS: dict[Level, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "failed": ("✗", "red"),
    "warning": ("!", "yellow"),
    "optional": ("○", "cyan"),
}


@click.command()
@json_option
@click.pass_obj
def doctor(state: StateDir, as_json: bool) -> int:
    """Check this machine and this deployment, and print how to fix what is wrong. Nothing is changed.

    \b
    ✓ is in order.
    ✗ is needed and missing: guests cannot be served. Only this makes the exit status 1.
    ! may become a problem later.
    ○ is optional: everything works without it; the line says what it would gain.

    \b
    Examples:
      nvmuser doctor
      nvmuser doctor --json | jq '.checks[] | select(.level != "ok")'
    """
    findings = checks.examine(state)
    usable = checks.usable(findings)
    if as_json:
        say({"ok": usable, "checks": [finding.to_json() for finding in findings]})
    else:
        for finding in findings:
            click.echo(_line(finding))
    return 0 if usable else 1


def _line(finding: Finding) -> str:
    mark, color = _MARKS[finding.level]
    parts = [f"{click.style(mark, fg=color)} {finding.name}: {finding.text}"]
    if not finding.ok and finding.gain:
        parts.append(f"optional, would gain: {finding.gain}")
    return "; ".join(parts) + (f"  → {finding.fix}" if finding.fix and not finding.ok else "")
