"""Experiment trackers: each follows a run's log from the driver, so that none can stop or slow training."""
