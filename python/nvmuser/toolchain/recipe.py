"""spdk-glue/spdk.toml and the patch series, read and checked.

Owns the key under which a build is cached. It builds nothing.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nvmuser.errors import SetupError, reason_of
from nvmuser.toolchain import artifact, cpu

_DECISIVE = ("version", "layout", "source", "fio", "configure")
"""The parts of spdk.toml that decide what a build is; the rest may be corrected without another build."""


@dataclass(frozen=True)
class Recipe:
    """What spdk.toml says, with the patches that apply."""

    version: str
    space_mib: int
    package: str
    suites: tuple[str, ...]
    accepted: tuple[str, ...]
    subtree: str
    fio_package: str
    fio_suites: tuple[str, ...]
    configure: tuple[str, ...]
    lines: int
    patches: tuple[Path, ...]
    cpu_level: str
    key: str

    def accepts(self, package_version: str) -> bool:
        """Whether a version of the source package is one whose SPDK was tried, whatever Debian's revision."""
        return package_version.rpartition("-")[0] in self.accepted


def glue_dir() -> Path:
    """spdk-glue: in the repository, or in the installed package."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "spdk-glue"
    return inside if inside.is_dir() else package.parent.parent / "spdk-glue"


@cache
def load() -> Recipe:
    """The recipe for this machine.

    :raises SetupError: the recipe's files are missing or cannot be parsed.
    """
    glue = glue_dir()
    try:
        text = (glue / "spdk.toml").read_text(encoding="utf-8")
        patches = series(glue / "patches")
        return parse(text, patches, cpu.level(), _host())
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise SetupError(f"{glue}: not a usable SPDK recipe: {reason_of(error)}") from error


def parse(text: str, patches: tuple[Path, ...], cpu_level: str, host: str) -> Recipe:
    """Make a recipe of spdk.toml's text; the key covers all that decides what a build is."""
    data = tomllib.loads(text)
    source, fio = data["source"], data["fio"]
    return Recipe(
        version=data["version"],
        space_mib=data["space_mib"],
        package=source["package"],
        suites=tuple(source["suites"]),
        accepted=tuple(source["accepted"]),
        subtree=source["subtree"],
        fio_package=fio["package"],
        fio_suites=tuple(fio["suites"]),
        configure=tuple(data["configure"]),
        lines=data["lines"],
        patches=patches,
        cpu_level=cpu_level,
        key=artifact.digest(
            repr([data[name] for name in _DECISIVE]), *(patch.read_bytes() for patch in patches), cpu_level, host
        ),
    )


def series(directory: Path) -> tuple[Path, ...]:
    """The patches of a quilt series in their order."""
    lines = (directory / "series").read_text(encoding="utf-8").splitlines()
    names = (line.partition("#")[0].strip() for line in lines)
    return tuple(directory / name for name in names if name)


def _host() -> str:
    """The Debian release: a build links to its libraries, whose names change from one to the next."""
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    return " ".join(sorted(line for line in lines if line.startswith(("ID=", "VERSION_ID="))))
