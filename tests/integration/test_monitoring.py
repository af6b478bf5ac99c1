"""Metrics, alerts and the dashboard, as Prometheus' own programs see them. Needs ci/debian-packages-tests.txt."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from api_process import SLEEPING, serving, token

from nvmuser.api.monitoring import ALERTS
from nvmuser.api.monitoring.dashboard import PANELS
from nvmuser.model.change import Change
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.paths import StateDir
from nvmuser.supervisor import control, daemon

HERE = Path(__file__).parent
ALWAYS = {
    "Supervisor", "Targets that serve", "Guests connected", "Not as declared", "Problems", "Space", "Reactors busy",
    "Reads, by volume", "Writes, by volume", "Bandwidth", "Changes", "Calls to the target", "Operations in flight",
}  # fmt: skip
"""Panels that show something of a host with one volume and no guest."""


def promtool(*arguments: str | Path, text: str = "") -> str:
    ended = subprocess.run(["promtool", *arguments], input=text, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_each_alert_comes_when_it_is_to_and_only_then(tmp_path: Path) -> None:
    (tmp_path / "alerts.yaml").write_text(ALERTS.read_text())
    shutil.copy(HERE / "alerts.test.yaml", tmp_path)
    assert "SUCCESS" in promtool("check", "rules", tmp_path / "alerts.yaml")
    assert "SUCCESS" in promtool("test", "rules", tmp_path / "alerts.test.yaml")


@contextlib.contextmanager
def prometheus(directory: Path, url: str, secret: str) -> Iterator[str]:
    """A Prometheus that reads an API. Yields its URL."""
    (directory / "token").write_text(secret)
    (directory / "alerts.yaml").write_text(ALERTS.read_text())
    job = {
        "job_name": "nvmuser", "scrape_interval": "1s", "scrape_timeout": "1s",
        "authorization": {"credentials_file": str(directory / "token")},
        "static_configs": [{"targets": [url.removeprefix("http://")]}],
    }  # fmt: skip
    (directory / "prometheus.yml").write_text(json.dumps({"rule_files": ["alerts.yaml"], "scrape_configs": [job]}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    options = [f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
    command = ["prometheus", *options, f"--web.listen-address={place}", "--log.level=error"]
    with subprocess.Popen(command) as process:
        try:
            yield f"http://{place}"
        finally:
            process.terminate()


@pytest.fixture
async def api() -> AsyncIterator[tuple[str, str]]:
    """URL and a viewer's token of a host with one volume."""
    with tempfile.TemporaryDirectory(prefix="nvmuser-") as directory:
        state = StateDir(Path(directory))
        async with daemon.running(state, SLEEPING):
            objects = (Volume("a", size=1 << 20), Controller("c", (Namespace("a"),)))
            await control.submit(state, Change(create=objects))
            with serving(state, "--listen", "127.0.0.1:0") as (_, (url,)):
                yield url, token(state, "viewer")


async def test_prometheus_takes_every_metric_and_expression(api: tuple[str, str], tmp_path: Path) -> None:
    url, secret = api
    async with httpx.AsyncClient(timeout=60) as client:
        text = (await client.get(f"{url}/metrics", headers={"Authorization": f"Bearer {secret}"})).text
        assert promtool("check", "metrics", text=text) == ""
        with prometheus(tmp_path, url, secret) as place:

            async def ask(expression: str) -> list[object]:
                plain = expression.replace("$host", ".*").replace("$__rate_interval", "10s")
                answer = await client.get(f"{place}/api/v1/query", params={"query": plain})
                assert answer.status_code == 200, f"{expression}: {answer.text}"
                found = answer.json()["data"]["result"]
                assert isinstance(found, list)
                return found

            async with asyncio.timeout(60):
                while not await is_ready(client, place):
                    pass
                while not await ask("rate(nvmuser_reactor_busy_seconds_total[10s])"):
                    pass  # it has not read often enough for rates
            for panel in PANELS:
                shown = [await ask(expression) for expression, _ in panel.queries]
                assert any(shown) or panel.title not in ALWAYS, panel.title
            names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
            assert {one["labels"]["alertname"] for one in await alerts(client, place)} == set()
            assert len(names) > 30


async def is_ready(client: httpx.AsyncClient, place: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return (await client.get(f"{place}/-/ready")).status_code == 200
    return False


async def alerts(client: httpx.AsyncClient, place: str) -> list[dict[str, dict[str, str]]]:
    found = (await client.get(f"{place}/api/v1/alerts")).json()["data"]["alerts"]
    assert isinstance(found, list)
    return found
