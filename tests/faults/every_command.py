"""Run every command of `nvmuser` in this process's surroundings, each in a child, and print how each ended.

    python every_command.py STATE_DIR [--as-nobody] [--fill] [--closed-stdout]

Prints one JSON object a line: `words`, `status`, `out`, `err`. Arguments are made up from what a command declares.
"""

from __future__ import annotations

import argparse
import codecs
import importlib
import json
import os
import pkgutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import click

import nvmuser
from nvmuser.cli.main import cli, main

_NOBODY = 65534
_SAMPLES = {"size": "1M", "names": "a", "path": "/dev/null", "nqn": "nqn.2026-11.org.example:a", "paths": "127.0.0.1"}
_GIVEN = {
    ("nvmuser", "rpc"): ["bdev_get_bdevs"],
    ("nvmuser", "apply"): ["-f", "{spec}"],
    ("nvmuser", "diff"): ["-f", "{spec}"],
    # Where it would serve, it would not end.
    ("nvmuser", "api", "serve"): ["--listen", "192.0.2.1:1"],
    ("nvmuser", "sma", "serve"): ["--listen", "192.0.2.1:1"],
    ("nvmuser", "csi", "serve"): ["--endpoint", "unix:///nowhere/csi.sock"],
    ("nvmuser", "top"): ["--once", "--interval", "0.2"],
}


def commands(group: click.Group, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command, by its words; `group` is at `path`."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def arguments(path: tuple[str, ...], command: click.Command, spec: str) -> list[str]:
    """What the command cannot do without."""
    if path in _GIVEN:
        return [word.format(spec=spec) for word in _GIVEN[path]]
    words: list[str] = []
    for parameter in command.params:
        if not parameter.required:
            continue
        if isinstance(parameter.type, click.Choice):
            sample = str(parameter.type.choices[0])
        else:
            sample = _SAMPLES.get(parameter.name or "", "a")
        words += [parameter.opts[0], sample] if isinstance(parameter, click.Option) else [sample]
    if any(parameter.name == "size" and not parameter.required for parameter in command.params):
        words += ["--size", "1M"]
    return words


def run(words: list[str], *, as_nobody: bool, closed_stdout: bool) -> tuple[int, str, str]:
    """Run `nvmuser` with these words in a child."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(writer if closed_stdout else out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            if as_nobody and os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(_NOBODY, _NOBODY, _NOBODY)
                os.setresuid(_NOBODY, _NOBODY, _NOBODY)
            _become(words)
        _, status = os.waitpid(child, 0)
        for file in (out, err):
            file.seek(0)
        return os.waitstatus_to_exitcode(status), out.read().decode(), err.read().decode()


def _become(words: list[str]) -> NoReturn:
    status = 1
    sys.argv = ["nvmuser", *words]
    try:
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def load_everything() -> None:
    """Import what commands import when they run: as nobody, the files may not be readable."""
    for module in pkgutil.walk_packages(nvmuser.__path__, "nvmuser."):
        importlib.import_module(module.name)
    codecs.lookup("ascii")


def fill(directory: Path) -> None:
    """Leave no byte of the file system."""
    descriptor = os.open(directory / "full", os.O_CREAT | os.O_WRONLY)
    for size in (65536, 4096, 1):
        try:
            while True:
                os.write(descriptor, bytes(size))
        except OSError:
            continue


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("state", type=Path)
    parser.add_argument("--as-nobody", action="store_true")
    parser.add_argument("--fill", action="store_true")
    parser.add_argument("--closed-stdout", action="store_true")
    options = parser.parse_args()
    if options.fill:
        fill(options.state)
    load_everything()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as spec:
        os.chmod(spec.name, 0o644)
        spec.write("volumes: [{name: a, size: 1M}]\n")
        spec.flush()
        for path, command in commands(cli, ("nvmuser",)):
            words = ["--state-dir", str(options.state), *path[1:], *arguments(path, command, spec.name)]
            status, out, err = run(words, as_nobody=options.as_nobody, closed_stdout=options.closed_stdout)
            print(json.dumps({"words": words[2:], "status": status, "out": out, "err": err}), flush=True)
