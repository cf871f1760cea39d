"""Parity of an exported model with PyTorch: images, measurements, gate."""
