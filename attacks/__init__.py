"""Attacks: pure functions from a problem to candidate images, one family per file."""
