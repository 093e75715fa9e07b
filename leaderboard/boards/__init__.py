"""Boards: group records into rows that can be compared, and rank the rows."""
