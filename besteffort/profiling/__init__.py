"""How profiles are made: measured on a device, read off a server's request log, with qualities from a harness."""
