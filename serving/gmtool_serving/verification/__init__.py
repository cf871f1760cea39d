"""Verification of an exported model on the machine at hand."""
