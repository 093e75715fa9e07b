"""Defenses: wrap or retrain a victim."""
