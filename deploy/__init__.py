"""Files for what runs and watches a server: systemd, Docker, Prometheus, Grafana."""
