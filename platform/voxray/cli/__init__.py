"""The command line, one file per noun. Nothing here imports torch or ray at module level."""
