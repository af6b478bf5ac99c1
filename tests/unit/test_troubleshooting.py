"""docs/troubleshooting.md has an entry for each finding of doctor's, and none for what it does not look at."""

from __future__ import annotations

import re
from pathlib import Path

from nvmuser import doctor
from nvmuser.paths import StateDir

PAGE = Path(__file__).resolve().parents[2] / "docs/troubleshooting.md"
_NAME = re.compile(r'(?:Finding|_part)\("([^"]+)"|\bname(?:, gain)? = "([^"]+)"')


def names() -> set[str]:
    """Of all findings that doctor's sources make, whichever this machine would show."""
    directory = Path(doctor.__file__).parent
    found = (match for path in directory.glob("*.py") for match in _NAME.findall(path.read_text(encoding="utf-8")))
    return {first or second for first, second in found}


def test_each_finding_has_its_entry() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("## What `doctor` finds")[2]
    assert len(names()) > 15
    assert set(re.findall(r"(?m)^### (.+)$", text)) == names()


def test_names_in_the_sources_are_those_that_are_printed(tmp_path: Path) -> None:
    assert {finding.name for finding in doctor.examine(StateDir(tmp_path))} <= names()
