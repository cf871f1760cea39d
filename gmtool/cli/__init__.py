"""The commands. Each file is one; heavy parts are imported inside the functions that need them."""
