"""Checks of masks before they are submitted to a benchmark."""
