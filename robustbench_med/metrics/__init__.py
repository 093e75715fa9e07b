"""Metrics, computed by established libraries, with the project's rules for undefined values."""
