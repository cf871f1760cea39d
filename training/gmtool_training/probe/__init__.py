"""Probe: a small classifier of a frozen encoder's features, fitted in seconds, and its self-training."""
