"""Prediction on a Ray cluster and in object stores."""
