"""Wording: write numbers, threat models, scores, checks and records as readable text."""
