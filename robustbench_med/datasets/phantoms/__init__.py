"""Phantoms: synthetic medical images, drawn from a seed, that need no download and no patient.

Each drawing function takes a split and returns its `Arrays`. A patient's anatomy is drawn once on a
fine canvas; each of the patient's images is an acquisition of that canvas with a pose, an exposure
and noise of its own. See `cohort.py` for the splits and `canvas.py` for the brushes.
"""
