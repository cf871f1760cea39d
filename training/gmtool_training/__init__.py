"""Training: data, augmentation, the GuidedMix-Net step, the loop, and what a run leaves behind."""
