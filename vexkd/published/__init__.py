"""Published checkpoints: their tensors under our names, and in our order of axes, channels and box codes."""
