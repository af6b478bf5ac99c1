"""A dashboard for Grafana, as JSON: one host at a time. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_HOST = 'instance=~"$host"'
_COLUMNS = 24
_HEIGHT = 8


@dataclass(frozen=True)
class Panel:
    """:param queries: expressions, each with how its lines are called.
    :param unit: as Grafana names it.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    width: int = 12


def _rate(metric: str) -> str:
    return f"rate(nvmuser_volume_{metric}_total{{{_HOST}}}[$__rate_interval])"


def _latency(kind: str, plural: str) -> str:
    spent, done = _rate(f"{kind}_time_seconds"), _rate(f"{plural}_completed")
    return f"topk(10, {spent} / ({done} > 0))"


PANELS = (
    Panel("Supervisor", "bool_yes_no", ((f"nvmuser_supervisor_up{{{_HOST}}}", ""),), "stat", 4),
    Panel("Targets that serve", "short", ((f"sum(nvmuser_target_up{{{_HOST}}})", ""),), "stat", 4),
    Panel("Guests connected", "short", ((f"sum(nvmuser_controller_connected{{{_HOST}}})", ""),), "stat", 4),
    Panel("Not as declared", "short", ((f"sum(1 - nvmuser_object_in_sync{{{_HOST}}})", ""),), "stat", 4),
    Panel("Problems", "short", ((f"nvmuser_problems{{{_HOST}}}", ""),), "stat", 4),
    Panel("Longest stall", "s", ((f"max(nvmuser_controller_longest_stall_seconds{{{_HOST}}})", ""),), "stat", 4),
    Panel("Reads, by volume", "iops", ((f"topk(10, {_rate('reads_completed')})", "{{volume}}"),)),
    Panel("Writes, by volume", "iops", ((f"topk(10, {_rate('writes_completed')})", "{{volume}}"),)),
    Panel(
        "Bandwidth", "Bps",
        ((f"sum({_rate('read_bytes')})", "read"), (f"sum({_rate('write_bytes')})", "written")),
    ),
    Panel("Mean latency of reads", "s", ((_latency("read", "reads"), "{{volume}}"),)),
    Panel("Mean latency of writes", "s", ((_latency("write", "writes"), "{{volume}}"),)),
    Panel(
        "Reactors busy", "percentunit",
        ((
            f"rate(nvmuser_reactor_busy_seconds_total{{{_HOST}}}[$__rate_interval]) / "
            f"(rate(nvmuser_reactor_busy_seconds_total{{{_HOST}}}[$__rate_interval]) + "
            f"rate(nvmuser_reactor_idle_seconds_total{{{_HOST}}}[$__rate_interval]))",
            "{{target}} core {{core}}",
        ),),
    ),
    Panel(
        "Recoveries", "short",
        ((f"increase(nvmuser_controller_recoveries_total{{{_HOST}}}[$__rate_interval])", "{{controller}}"),),
    ),
    Panel(
        "Stalls, 99 %", "s",
        ((
            "histogram_quantile(0.99, sum by (le) (increase("
            f"nvmuser_controller_stall_seconds_bucket{{{_HOST}}}[$__rate_interval])))",
            "",
        ),),
    ),
    Panel(
        "Latency, 99 % (with --latencies)", "s",
        ((
            "topk(10, histogram_quantile(0.99, sum by (le, volume) (rate("
            f"nvmuser_volume_latency_seconds_bucket{{{_HOST}}}[$__rate_interval]))))",
            "{{volume}}",
        ),),
    ),
    Panel(
        "Operations in flight", "short",
        ((f"topk(10, {_rate('read_time_seconds')} + {_rate('write_time_seconds')})", "{{volume}}"),),
    ),
    Panel("Behind the fleet", "short",
          ((f"scalar(max(nvmuser_fleet_revision)) - nvmuser_fleet_reported{{{_HOST}}}", "{{instance}}"),)),
    Panel("Last stall", "s", ((f"nvmuser_controller_last_stall_seconds{{{_HOST}}}", "{{controller}}"),)),
    Panel("Calls to the target", "s", ((f"nvmuser_target_rpc_seconds{{{_HOST}}}", "{{target}}"),)),
    Panel(
        "Space", "bytes",
        (
            (f"nvmuser_space_free_bytes{{{_HOST}}}", "free: {{kind}} {{where}}"),
            (f"nvmuser_space_promised_bytes{{{_HOST}}}", "promised: {{kind}} {{where}}"),
        ),
    ),
    Panel("Paths to remotes", "bool_yes_no",
          ((f"nvmuser_remote_path_connected{{{_HOST}}}", "{{remote}} by {{path}}"),)),
    Panel("Changes", "short", ((f"increase(nvmuser_changes_total{{{_HOST}}}[$__rate_interval])", "changes"),)),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    """To be imported into Grafana, with a data source of Prometheus."""
    variables = [
        {"name": "source", "type": "datasource", "query": "prometheus", "label": "Data source"},
        {
            "name": "host", "type": "query", "label": "Host", "multi": True, "includeAll": True, "refresh": 2,
            "datasource": {"type": "prometheus", "uid": "$source"},
            "query": {"query": "label_values(nvmuser_supervisor_up, instance)", "refId": "hosts"},
        },
    ]  # fmt: skip
    return {
        "uid": "nvmuser",
        "title": "nvmuser",
        "tags": ["nvmuser"],
        "schemaVersion": 39,
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "panels": _placed(PANELS),
    }


def _placed(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """From left to right, then down."""
    found: list[dict[str, Any]] = []
    x = y = 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > _COLUMNS:
            x, y = 0, y + _HEIGHT
        place = {"x": x, "y": y, "w": panel.width, "h": _HEIGHT}
        found.append(_panel(panel, number, place))
        x += panel.width
    return found


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "$source"}
    return {
        "id": number,
        "title": panel.title,
        "type": panel.kind,
        "gridPos": place,
        "datasource": source,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": expr, "legendFormat": legend, "datasource": source}
            for index, (expr, legend) in enumerate(panel.queries)
        ],
    }
