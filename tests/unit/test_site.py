"""The pages of the site, as mkdocs is given them: every document is there and listed, and links lead somewhere."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from nvmuser.cli import reference
from nvmuser.model.spec_schema import schema

SITE = Path(__file__).resolve().parents[2] / "ci/site"
SVG = "{http://www.w3.org/2000/svg}"
_LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SITE))
    return importlib.import_module("pages")


@pytest.fixture
def site(pages: ModuleType, tmp_path: Path) -> Path:
    pages.Site(tmp_path / "site").write()
    return tmp_path / "site"


def listed(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from listed(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_list_once(site: Path) -> None:
    config = yaml.safe_load((SITE / "mkdocs.yml").read_text())
    assert sorted(listed(config["nav"])) == sorted(path.name for path in site.glob("*.md"))


def test_every_link_leads_to_a_page(site: Path) -> None:
    checked = 0
    for path in site.rglob("*.md"):
        if path.parent == site:
            for name in _LINK.findall(path.read_text()):
                assert (path.parent / name).is_file(), f"{path.name}: {name}"
                checked += 1
    assert checked > 40


def test_a_link_that_leads_nowhere_is_an_error(
    pages: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.md").write_text("[gone](gone.md)\n")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "documents", lambda: {tmp_path / "page.md": "page.md"})
    with pytest.raises(FileNotFoundError, match=r"page\.md links to gone\.md"):
        pages.Site(tmp_path / "site").write()


def test_the_references_are_complete(site: Path) -> None:
    commands = (site / "commands.md").read_text()
    assert all(f"# {' '.join(words)}\n" in commands for words, _ in reference.walk())
    specification = (site / "specification.md").read_text()
    for name, part in schema()["properties"].items():
        section = specification.partition(f"## {name}\n")[2].partition("\n## ")[0]
        assert section, name
        for key, value in part.get("items", part).get("properties", {}).items():
            (row,) = (line for line in section.splitlines() if line.startswith(f"| `{key}` |"))
            assert "default" not in value or f"`{json.dumps(value['default'])}`" in row


TABLE = """| job | ours | `nvme` | other |
|---|---:|---:|---:|
| read <1> | **40.5k** | 20k (2.02) | none |
| write | **8k** | 10.2k (0.78 ≈) | 5k |
"""


def bars(svg: str) -> list[float]:
    """Widths of all bars, with those of the legend."""
    return [float(one.attrib["width"]) for one in ElementTree.fromstring(svg).iter(f"{SVG}rect")]


def test_bars_are_as_long_as_the_figures_of_the_table(pages: ModuleType) -> None:
    text, (svg,) = importlib.import_module("plots").drawn(f"# Page\n\n{TABLE}\nText.\n")
    assert text == f"# Page\n\n{TABLE}\n![IOPS by job and peer, as in the table](plots/1.svg)\n\nText.\n"
    longest, *others = bars(svg)[4:]
    assert [round(width / longest * 40.5, 1) for width in others] == [20, 8, 10.2, 5]
    words = [one.text for one in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert words == ["ours", "nvme", "other", "read <1>", "40.5k", "20k", "write", "8k", "10.2k", "5k"]


@pytest.mark.parametrize("table", [TABLE.replace("| job |", "| element |"), TABLE.replace("**40.5k**", "none")])
def test_other_tables_are_not_drawn(pages: ModuleType, table: str) -> None:
    assert importlib.import_module("plots").drawn(table) == (table, [])


def test_the_page_of_performance_has_its_drawing(site: Path) -> None:
    assert "](plots/1.svg)" in (site / "performance.md").read_text()
    assert len(bars((site / "plots/1.svg").read_text())) > 40
