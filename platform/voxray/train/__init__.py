"""The training engine: loop, optimisers, checkpoints, log, Ray Train worker and launcher."""
