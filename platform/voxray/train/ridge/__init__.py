"""The closed-form stepper: ridge regression from sums over the rows."""
