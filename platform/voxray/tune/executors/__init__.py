"""What trains a trial: in its own process (inline), in workers started once (gang), by Ray Train (train)."""
