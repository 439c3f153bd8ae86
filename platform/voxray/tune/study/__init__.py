"""The study of a search: an Optuna journal as the only record, its samplers, its folder."""
