"""Data sets on disk: layouts, split lists, samples, ground truth, checks."""
