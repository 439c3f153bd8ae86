"""Intracortical recordings of attempted speech → text."""
