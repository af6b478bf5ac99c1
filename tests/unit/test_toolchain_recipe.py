"""nvmuser.toolchain.recipe and cpu: what decides which cached SPDK is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvmuser.errors import SetupError
from nvmuser.toolchain import cpu, recipe
from nvmuser.toolchain.recipe import Recipe

HASWELL = """\
model name	: Some CPU
flags		: fpu pni ssse3 cx16 sse4_1 sse4_2 movbe popcnt xsave avx f16c lahf_lm abm fma bmi1 avx2 bmi2
"""
NEHALEM = "flags\t\t: fpu pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm"
OLD = "flags\t\t: fpu sse sse2"


@pytest.mark.parametrize(("cpuinfo", "level"), [(HASWELL, "x86-64-v3"), (NEHALEM, "x86-64-v2")])
def test_cpu_level(cpuinfo: str, level: str) -> None:
    assert cpu.level(cpuinfo) == level


def test_a_cpu_on_which_dpdk_does_not_run_is_refused() -> None:
    with pytest.raises(SetupError, match="x86-64-v2"):
        cpu.level(OLD)


def test_cpu_model() -> None:
    assert cpu.model(HASWELL) == "Some CPU"
    assert cpu.model(NEHALEM) == "unknown"


def text() -> str:
    return (recipe.glue_dir() / "spdk.toml").read_text(encoding="utf-8")


def parse(changed: str | None = None, level: str = "x86-64-v3", host: str = "debian 12") -> Recipe:
    return recipe.parse(changed or text(), recipe.series(recipe.glue_dir() / "patches"), level, host)


def test_the_recipe_in_the_repository_is_complete() -> None:
    found = parse()
    assert found.suites == ("forky", "sid")
    assert "--with-vfio-user" in found.configure
    assert found.patches
    assert all(patch.is_file() for patch in found.patches)


def test_the_key_changes_with_what_decides_the_build() -> None:
    key = parse().key
    assert parse().key == key
    assert parse(level="x86-64-v2").key != key
    assert parse(host="debian 13").key != key
    assert parse(text().replace("--with-uring", "--with-raid5f")).key != key
    assert parse(text().replace("20.2.4+ds", "20.2.5+ds")).key != key


def test_the_key_stays_when_a_comment_or_an_estimate_changes() -> None:
    assert parse("# new comment\n" + text().replace("lines = 1350", "lines = 1")).key == parse().key


def test_the_key_changes_with_a_patch(tmp_path: Path) -> None:
    (tmp_path / "series").write_text("# order matters\none.patch\n\ntwo.patch # why\n")
    (tmp_path / "one.patch").write_text("1")
    (tmp_path / "two.patch").write_text("2")
    patches = recipe.series(tmp_path)
    assert [patch.name for patch in patches] == ["one.patch", "two.patch"]
    before = recipe.parse(text(), patches, "x86-64-v3", "debian 12").key
    (tmp_path / "two.patch").write_text("3")
    assert recipe.parse(text(), patches, "x86-64-v3", "debian 12").key != before


@pytest.mark.parametrize(
    ("version", "accepted"), [("20.2.4+ds-2", True), ("20.2.4+ds-13", True), ("20.2.5+ds-1", False), ("18.2.7", False)]
)
def test_any_revision_of_an_accepted_version_will_do(version: str, accepted: bool) -> None:
    assert parse().accepts(version) is accepted
