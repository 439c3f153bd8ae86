"""S0: fMRI patterns to CLIP embeddings, and back."""
