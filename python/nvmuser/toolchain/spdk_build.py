"""Builds SPDK: source package → tree → patches → build → prefix.

Owns the order of things and what an interruption leaves: downloads are kept and continued; a tree is used again only
when the last make ended by itself; the prefix appears whole or not at all. The recipe decides what is built.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from nvmuser.errors import SetupError
from nvmuser.paths import cache_dir
from nvmuser.toolchain import apt, artifact, proc, recipe, spdk, spdk_install
from nvmuser.toolchain.recipe import Recipe
from nvmuser.toolchain.steps import Reporter

_MIB = 1024 * 1024


def fetched() -> bool:
    """Whether both tarballs are here, or no longer needed."""
    return spdk.is_done() or artifact.read_manifest(_found()) is not None


def fetch(reporter: Reporter) -> None:
    """Download and check the two source packages."""
    wanted = recipe.load()
    _check_space(wanted)
    suites = tuple(dict.fromkeys((*wanted.suites, *wanted.fio_suites)))
    private = apt.PrivateApt(cache_dir() / "apt/spdk", suites, kind="deb-src")
    private.update(reporter)
    directory = _downloads()
    tarball, version = _fetch_first(private, wanted.package, wanted.suites, wanted, directory, reporter)
    fio, fio_version = _fetch_first(private, wanted.fio_package, wanted.fio_suites, None, directory, reporter)
    _found().mkdir(exist_ok=True)
    artifact.write_manifest(
        _found(), tarball=tarball.name, package_version=version, fio_tarball=fio.name, fio_version=fio_version
    )
    artifact.remove(private.root)


def tarball(reporter: Reporter) -> Path:
    """The source package that holds SPDK; fetched where it is not here any more."""
    facts = artifact.read_manifest(_found())
    if facts is None or not (_downloads() / facts["tarball"]).exists():
        fetch(reporter)
        facts = artifact.read_manifest(_found())
    assert facts is not None
    return _downloads() / str(facts["tarball"])


def _downloads() -> Path:
    # Not an artifact: a partial download is worth keeping. apt checks a file that is there before it uses it.
    return cache_dir() / "download"


def _found() -> Path:
    """What the recipe asks for was found as which tarballs."""
    return _downloads() / recipe.load().key


def _check_space(wanted: Recipe) -> None:
    cache_dir().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache_dir()).free // _MIB
    if free < wanted.space_mib:
        raise SetupError(
            f"{cache_dir()}: {free} MiB free, the build needs {wanted.space_mib}: make room, or set NVMUSER_CACHE"
        )


def _fetch_first(
    private: apt.PrivateApt,
    package: str,
    suites: tuple[str, ...],
    accepting: Recipe | None,
    directory: Path,
    reporter: Reporter,
) -> tuple[Path, str]:
    """The first version, in the order of the suites, that is acceptable and that the mirror really has."""
    listed = [source for source in private.sources(package) if source.suite in suites]
    suitable = [source for source in listed if accepting is None or accepting.accepts(source.version)]
    suitable.sort(key=lambda source: suites.index(source.suite))
    failures: dict[str, proc.CommandError] = {}
    for source in suitable:
        if source.version in failures:
            continue
        try:
            return private.fetch_source(source, directory, reporter), source.version
        except proc.CommandError as error:
            failures[source.version] = error
    if failures:
        last = list(failures.values())[-1]
        raise SetupError(
            "\n".join(
                [
                    f"the mirror lists {package} {', '.join(failures)} but did not deliver it: try again later",
                    *last.tail,
                ]
            )
        )
    seen = ", ".join(f"{source.version} ({source.suite})" for source in listed) or "nothing"
    wanted = ", ".join(accepting.accepted) if accepting else "any version"
    raise SetupError(f"the mirror has {seen} of source package {package} in {', '.join(suites)}; wanted: {wanted}")


def build(reporter: Reporter) -> None:
    """Unpack, patch, build and install."""
    wanted = recipe.load()
    _check_space(wanted)
    facts = artifact.read_manifest(_found())
    assert facts is not None
    work = cache_dir() / f"build/spdk-{wanted.key}"
    for abandoned in work.parent.glob("*"):
        if abandoned != work:
            artifact.remove(abandoned)
    tree = _unpacked(wanted, facts, work, reporter)
    unclean = work / "make-is-running"
    if unclean.exists():
        # A make that was killed may have left half-written objects that look finished.
        artifact.remove(work)
        tree = _unpacked(wanted, facts, work, reporter)
    prefix = spdk.artifact_dir(cache_dir())
    unclean.touch()
    try:
        _make(wanted, work, tree, prefix, reporter)
    except KeyboardInterrupt:
        # make was ended by a signal that it handles: it removed what was half-made, and may go on next time.
        unclean.unlink()
        raise
    except proc.CommandError:
        artifact.remove(work)
        raise
    unclean.unlink()
    with artifact.assembling(prefix) as staging:
        spdk_install.install(tree, work, prefix, staging, reporter)
        artifact.write_manifest(
            staging, version=wanted.version, package=f"{wanted.package} {facts['package_version']}",
            fio=facts["fio_version"], cpu_level=wanted.cpu_level, patches=[patch.name for patch in wanted.patches],
        )  # fmt: skip
    artifact.remove(work)


def _unpacked(wanted: Recipe, facts: dict[str, str], work: Path, reporter: Reporter) -> Path:
    """The patched tree; work/spdk and work/fio are complete once they are there."""
    tree = work / "spdk"
    if tree.exists():
        return tree
    artifact.remove(work)
    work.mkdir(parents=True)
    for tarball, target, strip, pattern in (
        (facts["fio_tarball"], work / "fio", 1, "*"),
        (facts["tarball"], work / "spdk.new", 1 + len(Path(wanted.subtree).parts), f"*/{wanted.subtree}/*"),
    ):
        reporter.update(f"unpacking {tarball}", 0.02)
        target.mkdir()
        proc.run(
            ["tar", "-x", "-f", _downloads() / tarball, "-C", target, f"--strip-components={strip}",
             "--no-same-owner", "--wildcards", pattern],
            log=reporter.log,
        )  # fmt: skip
    version = (work / "spdk.new/VERSION").read_text(encoding="utf-8").strip()
    if not f"{version}.".startswith(f"{wanted.version}."):
        raise SetupError(f"{facts['tarball']} holds SPDK {version}, the recipe is for {wanted.version}")
    for patch in wanted.patches:
        reporter.update(f"applying {patch.name}", 0.1)
        proc.run(["patch", "-p1", "--batch", "--forward", "-i", patch], log=reporter.log, cwd=work / "spdk.new")
    (work / "spdk.new").rename(tree)
    return tree


def _make(wanted: Recipe, work: Path, tree: Path, prefix: Path, reporter: Reporter) -> None:
    env = proc.build_environment()
    jobs = f"-j{len(os.sched_getaffinity(0))}"
    reporter.update("fio, for its headers", 0.1)
    if not (work / "fio/config-host.mak").exists():
        proc.run(["./configure"], log=reporter.log, cwd=work / "fio", env=env)
    proc.run(["make", jobs, "fio"], log=reporter.log, cwd=work / "fio", env=env)
    if not (tree / "mk/config.mk").exists():
        options = [f"--prefix={prefix}", f"--target-arch={wanted.cpu_level}", f"--with-fio={work / 'fio'}"]
        reporter.update("SPDK's configure", 0.15)
        proc.run(["./configure", *options, *wanted.configure], log=reporter.log, cwd=tree, env=env)
    seen = 0

    def show(line: str) -> None:
        nonlocal seen
        seen += 1
        reporter.update(line.strip()[:60], 0.2 + 0.75 * min(seen / wanted.lines, 1.0))

    proc.run(["make", jobs], log=reporter.log, cwd=tree, env=env, on_line=show)
