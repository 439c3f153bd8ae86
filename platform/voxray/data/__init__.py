"""Shards and their manifest, the deterministic order, and the Ray Data stream into a worker."""
