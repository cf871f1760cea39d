"""Diagnosis of a machine: packages, GPU, runtimes, memory, disk."""
