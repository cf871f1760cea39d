"""Readers of labeling tools' files, one a tool."""
