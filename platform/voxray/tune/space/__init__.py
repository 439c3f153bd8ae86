"""What a search draws from: distributions, conditions, constraints, points, W&B's sweep files."""
