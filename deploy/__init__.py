"""Files for what runs and watches a server: systemd's units, a sample configuration."""
