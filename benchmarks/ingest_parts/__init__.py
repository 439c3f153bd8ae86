"""The parts of `benchmarks/ingest.py`: modalities, the ways to read them, the measurement and its tables."""
