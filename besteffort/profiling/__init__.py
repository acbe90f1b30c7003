"""Makes profiles: measured on a device or fitted to a server's request log, with qualities from a harness."""
