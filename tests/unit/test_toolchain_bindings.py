"""nvmuser.toolchain.bindings over a made-up library: what decides which build is used, and what is said without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nvmuser.errors import SetupError
from nvmuser.paths import SETUP
from nvmuser.toolchain import bindings, recipe, spdk
from nvmuser.toolchain.bindings import Binding
from nvmuser.toolchain.steps import Reporter

NAME = "nvmuser_test_binding"
BINDING = Binding(NAME, "answer", "answer.h", "libanswer.so", ("-lanswer",))


@pytest.fixture(autouse=True)
def glue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library with one function, and a binding for it."""
    prefix = tmp_path / "prefix"
    for name, text in {
        "prefix/include/answer.h": "int answer(void);\n",
        "prefix/lib/answer.c": "int answer(void) { return 42; }\n",
        "glue/answer/cdefs.h": "int answer(void); int twice(void);\n",
        "glue/answer/glue.h": "#include <answer.h>\nint twice(void);\n",
        "glue/answer/twice.c": '#include "glue.h"\nint twice(void) { return 2 * answer(); }\n',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    library = prefix / "lib/libanswer.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, prefix / "lib/answer.c"], check=True)
    monkeypatch.setattr(spdk, "find_spdk", lambda: spdk.Spdk(prefix, "26.01"))
    monkeypatch.setattr(recipe, "glue_dir", lambda: tmp_path / "glue")
    monkeypatch.setenv("NVMUSER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    return tmp_path / "glue/answer"


@pytest.fixture
def reporter(tmp_path: Path) -> Reporter:
    return Reporter(tmp_path / "log")


def test_a_built_module_is_loaded_from_the_cache(reporter: Reporter, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SetupError, match=f"{NAME} has not been built .* run `{SETUP}`"):
        bindings.load(BINDING)
    assert not bindings.is_done(BINDING)
    bindings.build(BINDING, reporter)
    assert bindings.is_done(BINDING)
    module = bindings.load(BINDING)
    assert (module.lib.answer(), module.lib.twice()) == (42, 84)
    assert bindings.load(BINDING) is module
    monkeypatch.delitem(sys.modules, NAME)


@pytest.mark.parametrize("name", ["cdefs.h", "glue.h", "twice.c"])
def test_another_source_is_another_build(reporter: Reporter, glue: Path, name: str) -> None:
    bindings.build(BINDING, reporter)
    with (glue / name).open("a") as file:
        file.write("\n")
    assert not bindings.is_done(BINDING)


def test_what_does_not_compile_leaves_no_module(reporter: Reporter, glue: Path) -> None:
    (glue / "twice.c").write_text("#error no\n")
    with pytest.raises(SetupError, match="#error no"):
        bindings.build(BINDING, reporter)
    assert not bindings.is_done(BINDING)


@pytest.mark.parametrize(("lost", "reason"), [("include/answer.h", "answer.h"), ("lib/libanswer.so", "libanswer.so")])
def test_an_spdk_without_the_library_is_no_reason_for_setup_to_fail(
    reporter: Reporter, tmp_path: Path, lost: str, reason: str
) -> None:
    (tmp_path / "prefix" / lost).unlink()
    assert bindings.is_done(BINDING)
    bindings.build(BINDING, reporter)
    with pytest.raises(SetupError, match=f"{NAME}: .*{reason}"):
        bindings.load(BINDING)


def test_without_cffi_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bindings, "find_spec", lambda _name: None)
    assert bindings.is_done(BINDING)
    with pytest.raises(SetupError, match=r"cffi is missing \(pip install 'nvmuser\[bindings\]'\)"):
        bindings.load(BINDING)
