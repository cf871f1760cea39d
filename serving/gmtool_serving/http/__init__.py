"""HTTP service: requests to masks, its page, health and metrics."""
