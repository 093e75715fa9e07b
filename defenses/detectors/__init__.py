"""Detectors: suspicions fitted on training images, thresholds from clean validation."""
