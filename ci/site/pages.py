"""The pages of the site: README and docs as they are, references made from the code, and what they link to.

    .venv/bin/python ci/site/pages.py DIRECTORY

Owns where each document lies in the site, and its links. `mkdocs build --strict` (`make docs`) checks them.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plots

from nvmuser.cli import reference
from nvmuser.model.spec_schema import schema

ROOT = Path(__file__).resolve().parents[2]
TOP = {"README.md": "index.md", "ARCHITECTURE.md": "architecture.md", "CONTRIBUTING.md": "contributing.md",
       "CHANGELOG.md": "changelog.md"}  # fmt: skip
SCREENSHOTS = ROOT / "out/screenshots"
_LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#]+)")
_LANGUAGES = {".py": "python", ".yaml": "yaml"}


def documents() -> dict[Path, str]:
    """Each document, and its place in the site."""
    found = {ROOT / name: place for name, place in TOP.items()}
    return found | {path: path.name for path in sorted((ROOT / "docs").glob("*.md"))}


class Site:
    """The pages that have been written, and those that they need besides."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._places = documents()
        self._others: dict[Path, str] = {}

    def write(self) -> None:
        """Write all pages.

        :raises FileNotFoundError: a document links to what is not in the repository.
        """
        shutil.rmtree(self._out, ignore_errors=True)
        (self._out / "files").mkdir(parents=True)
        for path, place in self._places.items():
            (self._out / place).write_text(self._linked(path, place), encoding="utf-8")
        (self._out / "commands.md").write_text(reference.markdown(), encoding="utf-8")
        (self._out / "specification.md").write_text("\n".join(specification(schema())), encoding="utf-8")
        (self._out / "screenshots.md").write_text("\n".join(self._screenshots()), encoding="utf-8")
        self._plots("performance.md")
        for path, place in self._others.items():
            (self._out / place).write_text(_as_page(path), encoding="utf-8")

    def _plots(self, place: str) -> None:
        text, drawings = plots.drawn((self._out / place).read_text(encoding="utf-8"))
        (self._out / "plots").mkdir()
        for number, drawing in enumerate(drawings, 1):
            (self._out / f"plots/{number}.svg").write_text(drawing, encoding="utf-8")
        (self._out / place).write_text(text, encoding="utf-8")

    def _screenshots(self) -> Iterator[str]:
        """The page of the API, as the tests saw it here last."""
        (self._out / "screenshots").mkdir()
        yield from ("# The page of the API", "", "Screenshots that `tests/integration/test_api_page.py` has made.", "")
        for path in sorted(SCREENSHOTS.glob("*-light.png")):
            name = path.name.removesuffix("-light.png")
            yield f"## {name.partition('-')[2].capitalize()}"
            yield ""
            for scheme in ("light", "dark"):
                shutil.copy(path.with_name(f"{name}-{scheme}.png"), self._out / "screenshots")
                yield f"![{name}, {scheme}](screenshots/{name}-{scheme}.png)"
            yield ""
        if not SCREENSHOTS.is_dir():
            yield "There are none yet: run that test, then `make docs` again."

    def _linked(self, path: Path, place: str) -> str:
        def target(match: re.Match[str]) -> str:
            linked = (path.parent / match[1]).resolve()
            if not linked.is_file():
                raise FileNotFoundError(f"{path.relative_to(ROOT)} links to {match[1]}, which is not there")
            if linked in self._places:
                return self._places[linked]
            name = str(linked.relative_to(ROOT)).replace("/", "-")
            return self._others.setdefault(linked, f"files/{name}.md")

        return _LINK.sub(target, path.read_text(encoding="utf-8"))


def _as_page(path: Path) -> str:
    """A file of the repository: Markdown as it is, anything else as code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    return f"# {path.relative_to(ROOT)}\n\n```{_LANGUAGES.get(path.suffix, '')}\n{text}```\n"


def specification(whole: dict[str, Any]) -> Iterator[str]:
    """The files of `nvmuser apply`, from their JSON Schema: a table for each part."""
    yield "# Specification files"
    yield ""
    yield "What `nvmuser apply` takes and `nvmuser export` prints, from the schema that `nvmuser schema` prints."
    yield "[control-plane.md](control-plane.md) explains it; [first.yaml](files/samples-first.yaml.md) is a whole one."
    for name, part in whole["properties"].items():
        described = part.get("items", part)
        if "properties" not in described:
            yield from ("", f"## {name}", "", f"Always `{json.dumps(part.get('const'))}`.")
            continue
        yield from ("", f"## {name}", "", "A list of these:" if "items" in part else "", "")
        yield from ("| key | value | needed | without it |", "|---|---|---|---|")
        for key, value in described["properties"].items():
            needed = "yes" if key in described.get("required", ()) else ""
            default = f"`{json.dumps(value['default'])}`" if "default" in value else ""
            yield f"| `{key}` | {_kind(value)} | {needed} | {default} |"
    yield ""


def _kind(value: dict[str, Any]) -> str:
    if "enum" in value:
        return ", ".join(f"`{json.dumps(one)}`" for one in value["enum"])
    if "anyOf" in value or "oneOf" in value:
        return " or ".join(dict.fromkeys(_kind(one) for one in value.get("anyOf", value.get("oneOf"))))
    if value.get("type") == "array":
        return f"list of {_kind(value.get('items', {}))}"
    kinds = value.get("type", "any")
    text = " or ".join(kinds) if isinstance(kinds, list) else str(kinds)
    examples = ", ".join(f"`{one}`" for one in value.get("examples", ()))
    return f"{text}, such as {examples}" if examples else text


if __name__ == "__main__":
    Site(Path(sys.argv[1])).write()
