"""Mask formats, the output folder and its manifest."""
