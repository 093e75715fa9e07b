"""Recompute what a record claims, and say whether it holds."""
