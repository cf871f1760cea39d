"""Mask files: reading, writing, recognising their encoding."""
