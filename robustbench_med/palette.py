"""Colours of the regions of a mask, in pictures and legends alike."""

from __future__ import annotations

# Okabe & Ito, "Color universal design", 2008, without black; told apart by colour-blind readers
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")


def colour(region: int) -> str:
    """Return the colour of the region at a place in the card's order; they come round.

    >>> colour(0)
    '#E69F00'
    """
    return _COLOURS[region % len(_COLOURS)]
