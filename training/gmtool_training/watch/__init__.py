"""A run as a person sees it: log, progress, time left, page."""
