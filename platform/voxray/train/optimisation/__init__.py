"""Optimisers, schedules, which parameters are trained, the LR finder and the moving average."""
