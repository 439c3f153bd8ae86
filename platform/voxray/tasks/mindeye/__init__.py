"""S3: fMRI patterns to CLIP embeddings with retrieval and a diffusion prior (MindEye)."""
