"""Output of the commands on a terminal: standard streams, progress."""
