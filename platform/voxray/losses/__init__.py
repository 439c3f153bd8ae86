"""Losses used by two domains or more. Torch only; imports nothing of ours."""
