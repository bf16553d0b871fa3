"""Stage 1 of 6: what the user named -> named tensors, read one at a time and never as a model."""
