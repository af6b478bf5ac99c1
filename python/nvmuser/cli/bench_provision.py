"""`nvmuser bench provision`: how fast the control plane is."""

from __future__ import annotations

import json

import click

from nvmuser.bench.measure.scratch import scratch
from nvmuser.bench.scenarios.provision import SAMPLE_CLIENT, SAMPLE_RPC_PY, Provision, provision
from nvmuser.cli.options import json_option
from nvmuser.cli.progress import Progress, run
from nvmuser.toolchain import find_spdk


@click.command("provision")
@click.option("--controllers", type=click.IntRange(1, 1000), default=500, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@json_option
def provision_command(controllers: int, rounds: int, as_json: bool) -> None:
    """Controllers with a null volume each: made, applied again, restored after a crash.

    Beside the same calls from a bare pipeline, from PyPI's spdk client one after the other, and from one run
    of SPDK's command line for each.

    \b
    Examples:
      nvmuser bench provision
      nvmuser bench provision --controllers 500 --rounds 5 --json
    """
    with scratch("nvmuser-") as root, Progress() as progress:
        result = run(provision(root, find_spdk(), controllers, rounds, progress))
        progress.step("done")
    click.echo(json.dumps(result.to_json(), indent=2) if as_json else _text(result))


def _text(result: Provision) -> str:
    return "\n".join(
        (
            f"{result.controllers} controllers with a null volume each, medians of {result.rounds} rounds",
            f"  made in         {result.seconds:8.3f} s  ({result.per_second:.0f} a second)",
            f"  applied again   {result.reapply_s:8.3f} s",
            f"  restored        {result.restore_s:8.3f} s after a crash",
            f"  x a bare pipeline of the same calls   {result.ratio_bare_pipeline:8.2f}",
            f"  x PyPI's spdk, one after the other    {result.ratio_spdk_client:8.1f}  (on {SAMPLE_CLIENT})",
            f"  x one rpc.py for each call            {result.ratio_rpc_py:8.1f}  (on {SAMPLE_RPC_PY})",
        )
    )
