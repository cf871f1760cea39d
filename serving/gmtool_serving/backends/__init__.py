"""Runtimes of exported models, and inference over tiles, windows, scales and flips."""
