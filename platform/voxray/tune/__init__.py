"""Search: space files, the Optuna study as the source of truth, the Ray Tune executors."""
