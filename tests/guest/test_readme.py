"""README's tour, as it stands there, by an ordinary user."""

from __future__ import annotations

import subprocess
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
USER = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
"""No root, and no more rights than to the files of the user who runs the tests."""


def tour() -> list[str]:
    """The commands of "Five minutes", but for the line to be completed and the long one."""
    section = README.read_text().partition("## Five minutes\n")[2].partition("\n## ")[0]
    commands = [line.removeprefix("    $ ") for line in section.splitlines() if line.startswith("    $ ")]
    return [line for line in commands if not line.startswith(("eval ", "nvmuser bench "))]


def test_the_tour() -> None:
    commands = tour()
    assert len(commands) >= 5
    assert "nvmuser target stop" in README.read_text()
    script = [
        "set -eu",
        "umask 022",
        commands[0],
        'test "$(id -u)" = 1000',
        "trap 'nvmuser target stop; rm -r $NVMUSER_STATE; test ! -e $NVMUSER_STATE' EXIT",
        *commands[1:],
    ]
    done = subprocess.run(
        [*USER, "sh", "-c", "\n".join(script)],
        cwd=README.parent,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "volume disk created" in done.stdout
    assert "nvme0n1" in done.stdout
    assert "/tmp/tour" not in README.read_text(), "the second user of a machine cannot have what the first one has made"
