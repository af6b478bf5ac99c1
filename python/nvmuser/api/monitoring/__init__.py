"""What goes with the metrics: alert rules for Prometheus (alerts.yaml), and a dashboard for Grafana, made here."""
