"""A private apt: Debian packages and sources of other suites, without touching the host's apt.

Owns a root with its own sources list, index files and cache. Mirror, keyring, proxy and the like come from the host's
apt configuration. apt checks every signature and checksum. It installs nothing: it downloads, and unpacks elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvmuser.errors import SetupError
from nvmuser.toolchain import proc
from nvmuser.toolchain.steps import Reporter

_KEYRINGS = ("/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp")

# apt-get's own progress, one line a change: `dlstatus:ITEM:PERCENT:TEXT` (apt's doc/progress-reporting).
_STATUS = re.compile(r"dlstatus:\d+:([\d.]+):(.*)")


@dataclass(frozen=True)
class Mirror:
    """Where the host gets Debian from, and the keys that it trusts for that."""

    uri: str
    keyrings: tuple[str, ...]


def host_mirror() -> Mirror:
    """The Debian mirror in the host's apt configuration (deb822 or one-line form: apt itself reads it).

    :raises SetupError: the configuration names none.
    """
    fields = "$(REPO_URI)|$(COMPONENT)|$(RELEASE)|$(ORIGIN)|$(LABEL)|$(SOURCESENTRY)"
    targets = proc.output(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"])
    codename = _os_release().get("VERSION_CODENAME", "")
    for line in targets.splitlines():
        uri, component, release, origin, label, entry = line.split("|", 5)
        # Before the first `apt-get update` origin and label are unknown: the release's name has to do.
        if component == "main" and (release == codename or (origin, label) == ("Debian", "Debian")):
            return Mirror(uri, _keyrings(entry))
    raise SetupError(
        "apt's configuration names no Debian mirror: add one to /etc/apt/sources.list.d and run apt-get update"
    )


def _os_release() -> dict[str, str]:
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {key: value.strip('"') for key, value in pairs}


def _keyrings(entry: str) -> tuple[str, ...]:
    """Debian's own keyring, and the file that `entry` (FILE:NUMBER of a sources entry) is signed by."""
    found = [path for path in _KEYRINGS if Path(path).exists()][:1]
    signed_by = signed_by_of(Path(entry.rsplit(":", 1)[0]), int(entry.rsplit(":", 1)[1]))
    if signed_by and signed_by not in found and Path(signed_by).exists():
        found.append(signed_by)
    return tuple(found)


def signed_by_of(sources: Path, number: int) -> str | None:
    """The keyring file that entry `number` names: a stanza of a .sources file, a line of a .list file."""
    text = sources.read_text(encoding="utf-8", errors="replace") if sources.exists() else ""
    if sources.suffix == ".sources":
        stanzas = [part for part in re.split(r"\n\s*\n", text) if re.search(r"(?im)^Types:", part)]
        entry = stanzas[number - 1] if number <= len(stanzas) else ""
        match = re.search(r"(?im)^Signed-By:\s*(/\S+)", entry)
    else:
        lines = text.splitlines()
        match = re.search(r"\[.*\bsigned-by=(/[^\s\]]+)", lines[number - 1] if number <= len(lines) else "")
    return match[1] if match else None


@dataclass(frozen=True)
class Source:
    """One version of a source package, and the suite that lists it."""

    package: str
    version: str
    suite: str


class PrivateApt:
    """apt with a root of its own, on the host's mirror.

    :param suites: in order of preference.
    :param kind: `deb` for packages, `deb-src` for sources.
    """

    def __init__(self, root: Path, suites: Sequence[str], *, kind: str = "deb") -> None:
        self.root = root
        self.suites = tuple(suites)
        self.kind = kind
        self._env: dict[str, str] = {}

    def update(self, reporter: Reporter) -> None:
        """Write the configuration and fetch the suites' index files."""
        mirror = host_mirror()
        for name in ("lists/partial", "cache/archives/partial", "state"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        signed = f" signed-by={','.join(mirror.keyrings)}" if mirror.keyrings else ""
        lines = [f"{self.kind} [arch=amd64{signed}] {mirror.uri} {suite} main\n" for suite in self.suites]
        (self.root / "sources.list").write_text("".join(lines), encoding="utf-8")
        (self.root / "state/status").touch()
        (self.root / "apt.conf").write_text(self._configuration(), encoding="utf-8")
        self._env = {"APT_CONFIG": str(self.root / "apt.conf")}
        reporter.update(f"package lists of {', '.join(self.suites)}")
        self._get(["update"], reporter, self.root)

    def _configuration(self) -> str:
        """How the host fetches (proxy, time-outs, address family), and everything else our own."""
        dump = proc.output(["apt-config", "dump"]).splitlines()
        fetching = [line for line in dump if re.match(r"Acquire::(?!IndexTargets|Languages|Changelogs)", line)]
        root = self.root
        own = {
            "Dir::State": f"{root}/state", "Dir::State::Lists": f"{root}/lists",
            "Dir::State::status": f"{root}/state/status", "Dir::Cache": f"{root}/cache",
            "Dir::Etc::sourcelist": f"{root}/sources.list", "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null", "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::Etc::main": "/dev/null", "Dir::Etc::parts": "/dev/null", "Dir::Log": f"{root}/state",
            "Acquire::Languages": "none", "Acquire::Retries": "3",
            "APT::Architecture": "amd64", "APT::Architectures": "amd64", "APT::Default-Release": self.suites[0],
            "APT::Install-Recommends": "false", "APT::Get::Assume-Yes": "true",
            # apt's download user cannot reach into a home directory that is closed to others.
            "APT::Sandbox::User": "root",
        }  # fmt: skip
        return "\n".join([*fetching, *(f'{key} "{value}";' for key, value in own.items()), ""])

    def _get(self, arguments: Sequence[str], reporter: Reporter, cwd: Path) -> None:
        def show(line: str) -> None:
            if match := _STATUS.match(line):
                reporter.update(match[2], float(match[1]) / 100)

        command = ["apt-get", "-q", "-o", "APT::Status-Fd=1", *arguments]
        proc.run(command, log=reporter.log, cwd=cwd, env=self._env, on_line=show, timeout=1800)

    def sources(self, package: str) -> list[Source]:
        """What the mirror lists of a source package, in the suites' order of preference."""
        text = proc.output(["apt-cache", "madison", package], env=self._env)
        found = []
        for line in text.splitlines():
            name, version, where = (part.strip() for part in line.split("|"))
            words = where.split()
            if name == package and words[-1] == "Sources":
                found.append(Source(package, version, words[-2].split("/")[0]))
        return sorted(found, key=lambda source: self.suites.index(source.suite))

    def fetch_source(self, source: Source, directory: Path, reporter: Reporter) -> Path:
        """Download the upstream tarball of a source package and check it; a partial file is continued.

        Only the tarball: that is all that is needed, and mirrors were seen to list a version of which they still have
        the tarball but no longer the small files beside it.
        """
        directory.mkdir(parents=True, exist_ok=True)
        reporter.update(f"{source.package} {source.version} from {source.suite}")
        what = f"{source.package}={source.version}"
        self._get(["source", "--download-only", "--tar-only", what], reporter, directory)
        upstream = re.sub(r"^\d+:", "", source.version).rpartition("-")[0]
        tarballs = sorted(directory.glob(f"{source.package}_{upstream}.orig.tar.*"))
        if not tarballs:
            raise SetupError(f"apt-get brought no tarball of {what} into {directory}")
        return tarballs[0]

    def fetch_packages(self, packages: Sequence[str], reporter: Reporter, *, alone: bool = False) -> list[Path]:
        """Download packages with all that they depend on (`alone`: without); return the files.

        The private status file is empty, so that nothing counts as installed already.
        """
        archives = self.root / "cache/archives"
        for leftover in archives.glob("*.deb"):
            leftover.unlink()
        reporter.update(f"packages {' '.join(packages)}")
        if alone:
            self._get(["download", *packages], reporter, archives)
        else:
            self._get(["install", "--download-only", *packages], reporter, self.root)
        return sorted(archives.glob("*.deb"))

    def depends(self, package: str) -> list[str]:
        """The names that a package depends on directly."""
        text = proc.output(["apt-cache", "depends", "--important", package], env=self._env)
        return re.findall(r"Depends: ([^<\s]\S*)", text)


def unpack(packages: Sequence[Path], root: Path, reporter: Reporter, *, leave_out: Sequence[str] = ()) -> None:
    """Unpack packages into `root`, where /bin, /lib and the like are links into /usr; run no script of theirs."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    excludes = [f"--exclude={pattern}" for pattern in leave_out]
    # Owners do not matter and an ordinary user could not set them; the links above must survive.
    tar = ["tar", "-x", "-C", str(root), "--no-same-owner", "--keep-directory-symlink", "--wildcards", *excludes]
    script = 'dpkg-deb --fsys-tarfile "$1" | { shift; exec "$@"; }'
    for number, package in enumerate(packages):
        reporter.update(f"unpacking {package.name.partition('_')[0]}", number / len(packages))
        proc.run(["bash", "-o", "pipefail", "-c", script, "unpack", str(package), *tar], log=reporter.log)


def package_version(packages: Sequence[Path], name: str) -> str:
    """The version of one of the downloaded packages (apt writes an epoch's colon as %3a)."""
    for package in packages:
        if package.name.startswith(f"{name}_"):
            return package.name.split("_")[1].replace("%3a", ":")
    raise SetupError(f"package {name} is not among those downloaded")
