"""Shifts: what an ordinary scanner, operator or archive does to an image, one idea per file."""
