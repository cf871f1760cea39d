"""Deep checks of `gmtool doctor --deep`: train, export and predict with toy data on this machine's devices."""
