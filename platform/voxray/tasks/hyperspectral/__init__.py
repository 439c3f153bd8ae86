"""Hyperspectral images, of the retina above all."""
