"""Certified accuracy against the L2 radius, as inline SVG, and what it says in words."""

from __future__ import annotations

from robustbench_med import spec
from robustbench_med.bench.record import Certificate, Record
from robustbench_med.errors import SpecError

from .board import Board, Row
from .figures import colour, drawn
from .svg import INK, drawing, inline, plain_axes, stroke
from .text import number, plain


def certificate(row: Row) -> tuple[Record, Certificate] | None:
    """Return the certificate of a row and its record: the same of all its runs, so the first."""
    records = (run.record for run in row.runs.values() if run.record.status == "ok")
    found = ((one, one.certificate) for one in records if one.certificate is not None)
    return next(((one, proved) for one, proved in found if len(proved.radii)), None)


def certified(board: Board) -> dict[Row, int]:
    """Return the rows with a certificate, each with its place among the curves of the board."""
    return {row: place for place, row in enumerate(drawn(board)) if certificate(row)}


def certified_curves(board: Board, prefix: str) -> str:
    """Return certified accuracy against the L2 radius with 95 % bands as an `<svg>` element.

    A share at one radius holds for all smaller ones: steps, so that nothing is drawn that is not
    proved.

    Args:
        board: with a row of `certified`; colours are those of its other curves.
        prefix: starts every id inside, so that ids stay unique on the page.
    """
    with drawing(prefix, 6.6, 3.0) as figure:
        axes = figure.add_axes((0.085, 0.155, 0.885, 0.82))
        furthest = 0.0
        for row, place in certified(board).items():
            found = certificate(row)
            assert found is not None  # noqa: S101 - of certified
            radii, correct = found[1].radii, found[1].correct
            furthest, paint = max(furthest, *radii), stroke(colour(place))
            values, low, high = (
                [100 * getattr(e, field) for e in correct] for field in ("value", "low", "high")
            )
            axes.step(radii, values, where="pre", color=paint, linewidth=1.8, gid=f"curve-{place}")
            band = axes.fill_between(
                radii, low, high, step="pre", color=paint, alpha=0.11, linewidth=0
            )
            band.set_gid(f"band-{place}")
        axes.set_xlim(0, (furthest or 1) * 1.02)
        axes.set_ylim(-1.5, 101.5)
        axes.set_yticks([0, 20, 40, 60, 80, 100])
        axes.set_xlabel("certified radius, L2 in image units", color=INK)
        axes.set_ylabel("certified accuracy, %", color=INK)
        plain_axes(axes)
        label = f"Certified accuracy against L2 radius on {plain(board.dataset.heading)}"
        return inline(figure, prefix=prefix, label=label)


def certified_words(row: Row) -> str:
    """Return the noise of a row's certificate and how often it abstains: "σ = 0.25, abstains …"."""
    found = certificate(row)
    if found is None:
        return ""
    record, proved = found
    share = number(proved.abstained.value)
    return ", ".join(filter(None, [_sigma(record), f"abstains on {share} % of images"]))


def _sigma(record: Record) -> str:
    card = record.defense_card
    try:
        given = spec.parse(record.case.defense).parameters
    except SpecError:
        given = {}
    sigma = given.get("sigma", card.parameters.get("sigma") if card else None)
    return "" if sigma is None else plain(f"σ = {sigma}")
