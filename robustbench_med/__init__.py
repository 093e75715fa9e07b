"""A robustness bench for medical image models."""

__version__ = "0.1.0"
