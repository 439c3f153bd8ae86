"""Trackers of a search or an ablation: the driver follows the trials' logs, trials themselves start none."""
