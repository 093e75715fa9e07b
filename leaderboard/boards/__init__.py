"""Boards: who is compared with whom, what ranks, and what is known of each row."""
