"""Recompute the results of a record, and report whether they match."""
