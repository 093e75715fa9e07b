"""Channels: which of them an attack may change, and with which share of the radius."""

from __future__ import annotations

from robustbench_med.ball import Ball
from robustbench_med.bench.case import Case
from robustbench_med.cards import DatasetCard, Norm
from robustbench_med.errors import SpecError
from robustbench_med.spec import number

ALL = "all"


def names_of(card: DatasetCard) -> tuple[str, ...]:
    """Return the names of a dataset's channels; their numbers where it names none."""
    return card.channel_names or tuple(map(str, range(card.channels)))


def channels_of(text: str, card: DatasetCard, norm: Norm) -> dict[str, float]:
    """Return the channels named in `text` with their shares of the radius; all of them are none.

    Args:
        text: "all", or names joined by "+", each with a share after "=" or the whole radius.
        card: names the channels.
        norm: shares need L-inf.

    Raises:
        SpecError: no such channel, one twice, or a share out of (0, 1].
    """
    if text.strip() == ALL:
        return {}
    known, found = names_of(card), dict[str, float]()
    for part in text.split("+"):
        name, equals, share = (word.strip() for word in part.partition("="))
        if name not in known or name in found:
            twice = " once each" if name in found else ""
            raise SpecError(f"expected channels in {', '.join(known)}{twice}, got {text!r}")
        found[name] = number(share) if equals else 1.0
        if not 0 < found[name] <= 1:
            raise SpecError(f"expected a share of the radius in (0, 1], got {part.strip()!r}")
    if norm != "linf" and set(found.values()) != {1.0}:
        raise SpecError(f"expected norm linf for shares of the radius, got {norm!r}")
    whole = len(found) == len(known) and set(found.values()) == {1.0}
    return {} if whole else {name: found[name] for name in known if name in found}


def ball_of(case: Case, card: DatasetCard, eps: float) -> Ball:
    """Return the ball of a case at one radius."""
    if not case.channels:
        return Ball(case.norm, eps)
    known = names_of(card)
    shares = tuple(case.channels.get(name, 1.0) for name in known)
    return Ball(
        case.norm,
        eps,
        channels=tuple(known.index(name) for name in case.channels),
        channel_scales=None if set(shares) == {1.0} else shares,
    )
