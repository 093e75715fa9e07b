"""Training: how the shipped victims are fitted, plain or with a defense that trains."""
