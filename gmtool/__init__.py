"""gmtool: semi-supervised semantic segmentation, from a few labeled images to a deployed model."""

__version__ = "0.1.0"
