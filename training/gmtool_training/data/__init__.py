"""Training data: reading, caching, augmenting and batching of images and masks."""
