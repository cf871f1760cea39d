"""Choice of the images to label next."""
