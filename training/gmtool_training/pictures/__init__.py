"""Pictures of a training run: curves and sheets of images and masks."""
