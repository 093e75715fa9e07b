"""Detectors, fitted on training images, with thresholds from clean validation images."""
