"""An image in Ceph through nvmuser, beside the same image by fio's own engine for RBD: 4 KiB at depth 32, in turns.

Only one of both can have it open. The host rests between two looks (`shared_client`), and the target sleeps when it has
nothing to do (profile eco), since both share the machine with the cluster.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.measure.stats import Interval, ratio
from nvmuser.bench.scenarios.shared_volumes import Ceph, hide, show
from nvmuser.ceph import images
from nvmuser.errors import SetupError
from nvmuser.paths import StateDir
from nvmuser.supervisor.spdk import Options
from nvmuser.toolchain import proc

PATTERNS = ("randread", "randwrite")
DEPTH, SIZE = 32, 4096
_NAME = "ratio"
_IMAGE_BYTES = 256 << 20
_GRACE_S = 60.0


def fio_program() -> str:
    """The system's fio, with its engine for RBD.

    :raises SetupError: it is not there. (The fio of set-up is built without.)
    """
    path = shutil.which("fio")
    if path is None or "rbd" not in proc.output([path, "--enghelp"]):
        raise SetupError("no fio with the engine rbd: install the package fio")
    return path


async def measure(
    ceph: Ceph, root: Path, *, rounds: int, seconds: float, progress: Progress
) -> dict[str, dict[str, list[float]]]:
    """IOPS of each, one value a round: by pattern, then `nvmuser` and `fio`.

    :raises NvmuserError: one of both failed.
    """
    program = fio_program()
    found: dict[str, dict[str, list[float]]] = {pattern: {"nvmuser": [], "fio": []} for pattern in PATTERNS}
    volume = ceph.volume(_NAME, size=_IMAGE_BYTES)
    conf = _configuration(ceph, root)
    await asyncio.to_thread(images.make, ceph.cluster, volume)
    try:
        progress.step("writing the image")
        await asyncio.to_thread(_fio, program, ceph, conf, "write", 0.0)
        state = root / "ratio"
        await ceph.declare(StateDir(state))
        async with Deployment.start(state, Options(profile="eco", hugepages=False)) as deployment:
            for number in range(rounds):
                for pattern in PATTERNS:
                    progress.step(f"round {number + 1} of {rounds}: {pattern}")
                    # Whoever is first has the colder caches: they take turns at that.
                    for who in ("nvmuser", "fio") if number % 2 else ("fio", "nvmuser"):
                        if who == "fio":
                            value = await asyncio.to_thread(_fio, program, ceph, conf, pattern, seconds)
                        else:
                            value = await _ours(deployment, ceph, pattern, seconds)
                        found[pattern][who].append(value)
    finally:
        await asyncio.to_thread(images.remove, ceph.cluster, volume)
    return found


def ratios(found: dict[str, dict[str, list[float]]]) -> dict[str, Interval]:
    """Ours over fio's, the median over the rounds."""
    return {pattern: ratio(values["nvmuser"], values["fio"]) for pattern, values in found.items()}


async def _ours(deployment: Deployment, ceph: Ceph, pattern: str, seconds: float) -> float:
    await show(deployment, ceph.volume(_NAME))
    try:
        client = "nvmuser.bench.scenarios.shared_client"
        directory = deployment.state.target_dir(_NAME)
        argv: list[str | Path] = [sys.executable, "-m", client, directory, pattern, str(DEPTH), str(SIZE), str(seconds)]
        return float(await asyncio.to_thread(proc.output, argv, timeout=seconds + _GRACE_S))
    finally:
        await hide(deployment, _NAME)


def _configuration(ceph: Ceph, root: Path) -> Path:
    """The cluster's, without librbd's cache, as the target has it."""
    text = Path(ceph.cluster.conf).read_text(encoding="utf-8")
    keyring = f"keyring = {ceph.cluster.keyring}\n" if ceph.cluster.keyring else ""
    path = root / "fio.conf"
    path.write_text(f"{text}\n[client]\nrbd cache = false\n{keyring}", encoding="utf-8")
    return path


def _fio(program: str, ceph: Ceph, conf: Path, pattern: str, seconds: float) -> float:
    """IOPS. Without seconds the image is written once, in large pieces."""
    size, depth = (SIZE, DEPTH) if seconds else (4 << 20, 4)
    argv = [program, "--name=image", "--ioengine=rbd", f"--pool={ceph.pool}", f"--clientname={ceph.cluster.user}"]
    argv += [f"--rbdname={ceph.volume(_NAME).image}", f"--rw={pattern}", f"--bs={size}", f"--iodepth={depth}"]
    argv += ["--direct=1", "--output-format=json"]
    argv += ["--time_based", f"--runtime={seconds:g}", "--ramp_time=1"] if seconds else []
    text = proc.output(argv, timeout=seconds + _GRACE_S, env={"CEPH_CONF": str(conf)})
    job = json.loads(text[text.index("{") :])["jobs"][0]
    if job["error"]:
        raise SetupError(f"fio's engine rbd: error {job['error']}")
    return float(job["read" if pattern == "randread" else "write"]["iops"])
