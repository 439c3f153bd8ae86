"""S4: multi-label chest X-ray classification."""
