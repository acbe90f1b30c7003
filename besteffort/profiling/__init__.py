"""Makes profiles: measured on a device or fitted to a server log, with qualities from a harness."""
