"""The doctor's checks: a function per thing that may be wrong."""
