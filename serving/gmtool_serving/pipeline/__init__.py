"""The prediction pipeline: decode, compute, write."""
