"""Serving: run an exported model over images and score it. Never imports torch."""
