"""Checkpoints: what they hold, how they are written and verified, and weights to start from."""
