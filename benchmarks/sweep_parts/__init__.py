"""The parts of `benchmarks/sweep.py`: the problem, the ways to search it, what a command costs."""
