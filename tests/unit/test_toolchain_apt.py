"""nvmuser.toolchain.apt: the mirror and keyring are taken from the host's configuration, in either of its forms."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvmuser.errors import SetupError
from nvmuser.toolchain import apt, proc

DEB822 = """\
# a comment before everything

Types: deb
# and one inside
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/first.gpg

Types: deb
URIs: http://mirror.invalid/security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/second.gpg
"""
ONE_LINE = """\
# comment
deb [arch=amd64 signed-by=/usr/share/keyrings/third.gpg] http://mirror.invalid/debian bookworm main
deb http://mirror.invalid/debian bookworm contrib
"""


@pytest.mark.parametrize(
    ("name", "text", "number", "expected"),
    [
        ("debian.sources", DEB822, 1, "/usr/share/keyrings/first.gpg"),
        ("debian.sources", DEB822, 2, "/usr/share/keyrings/second.gpg"),
        ("debian.sources", DEB822, 3, None),
        ("sources.list", ONE_LINE, 2, "/usr/share/keyrings/third.gpg"),
        ("sources.list", ONE_LINE, 3, None),
        ("sources.list", ONE_LINE, 9, None),
    ],
)
def test_signed_by_is_found_in_both_forms(
    tmp_path: Path, name: str, text: str, number: int, expected: str | None
) -> None:
    (tmp_path / name).write_text(text)
    assert apt.signed_by_of(tmp_path / name, number) == expected


def test_a_sources_file_that_is_gone_names_no_keyring(tmp_path: Path) -> None:
    assert apt.signed_by_of(tmp_path / "absent.sources", 1) is None


def fake_targets(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(proc, "output", lambda *_args, **_kwargs: "\n".join(lines) + "\n")
    monkeypatch.setattr(apt, "_os_release", lambda: {"VERSION_CODENAME": "bookworm"})


def test_the_mirror_is_debian_s_and_neither_security_nor_a_third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_targets(
        monkeypatch,
        "http://other.invalid/tool/|main|stable|Tool|Tool|/etc/apt/sources.list.d/tool.list:1",
        "http://sec.invalid/debian-security/|main|bookworm-security|Debian|Debian-Security|/a.sources:2",
        "http://mirror.invalid/debian/|main|stable|Debian|Debian|/a.sources:1",
    )
    assert apt.host_mirror().uri == "http://mirror.invalid/debian/"


def test_before_the_first_update_the_release_s_name_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_targets(monkeypatch, "http://mirror.invalid/debian/|main|bookworm|$(ORIGIN)|$(LABEL)|/a.sources:1")
    assert apt.host_mirror().uri == "http://mirror.invalid/debian/"


def test_no_mirror_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_targets(monkeypatch, "http://other.invalid/tool/|main|stable|Tool|Tool|/a.list:1")
    with pytest.raises(SetupError, match="names no Debian mirror"):
        apt.host_mirror()


def test_a_package_s_version_is_read_from_its_file_name() -> None:
    files = [Path("/x/qemu-utils_1%3a11.1.3+ds-1_amd64.deb"), Path("/x/qemu-system-x86_1%3a11.1.3+ds-2_amd64.deb")]
    assert apt.package_version(files, "qemu-system-x86") == "1:11.1.3+ds-2"
    with pytest.raises(SetupError, match="ovmf"):
        apt.package_version(files, "ovmf")
