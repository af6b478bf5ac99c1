"""What goes with the metrics: alert rules for Prometheus (alerts.yaml), and a dashboard for Grafana, made here."""

from pathlib import Path

ALERTS = Path(__file__).with_name("alerts.yaml")
"""The rules' file."""
