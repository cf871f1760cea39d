"""Settings of data set kinds and of recipes."""
