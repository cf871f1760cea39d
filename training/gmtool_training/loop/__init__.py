"""A training run: preparation, loop, validation, log, checkpoints, resume."""
