"""What a benchmark leaves in its output directory: a document for programs, and pages for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def save(output: Path, document: Mapping[str, Any], pages: Mapping[str, str], *, name: str = "summary.json") -> None:
    """Write the document as `name` and the pages, each as its own file, into a directory that is there."""
    for file, text in {name: json.dumps(document, indent=1) + "\n", **pages}.items():
        (output / file).write_text(text, encoding="utf-8")
