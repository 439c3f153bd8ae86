"""What a person reads afterwards: figures and the one-file HTML report."""
