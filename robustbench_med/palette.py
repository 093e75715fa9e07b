"""Colours of the regions of a mask, the same in pictures and legends."""

from __future__ import annotations

# Okabe & Ito, "Color universal design", 2008, without black, for colour-blind readers
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")


def colour(region: int) -> str:
    """Return the colour of a region by its index in the card; the colours repeat.

    >>> colour(0)
    '#E69F00'
    """
    return _COLOURS[region % len(_COLOURS)]
