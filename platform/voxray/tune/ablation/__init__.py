"""Ablations: a baseline and arms trained with paired seeds, cells that run once, and the statistics."""
