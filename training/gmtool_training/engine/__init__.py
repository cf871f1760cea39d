"""Optimiser, device, precision, gradient accumulation, average of the weights."""
