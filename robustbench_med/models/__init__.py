"""Models: builders, verified weights, recipes, and the shipped zoo."""
