"""Datasets: phantoms drawn from a seed, MedMNIST, and any npz file with its keys."""
