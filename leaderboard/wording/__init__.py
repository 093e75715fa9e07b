"""Wording: numbers, threat models, scores, checks and records as a person reads them."""
