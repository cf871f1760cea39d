"""GuidedMix-Net: the training step, pairing, mixing, losses, pseudo masks."""
