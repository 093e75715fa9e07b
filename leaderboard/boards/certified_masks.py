"""Certified masks: what a defense proves about each row's masks, beside the attacks within it."""

from __future__ import annotations

from typing import NamedTuple

from robustbench_med import spec
from robustbench_med.bench.record import MaskCertificate, Record
from robustbench_med.errors import SpecError
from robustbench_med.stats import Estimate

from ..wording.text import plain
from .board import Board, Row

FAULT = "certificate_above_attack"  # the check of bench/checks.py


class ProvedMasks(NamedTuple):
    """The certificate of a row, and the strongest attack on the same smoothed prediction.

    Attributes:
        record: the record of the certificate; all runs of a row have the same.
        proved: the certificate.
        attacked: the worst case of the row at `eps`; None if the board has no such radius.
        eps: the largest radius of the board within the certified one.
    """

    record: Record
    proved: MaskCertificate
    attacked: Estimate | None
    eps: float

    @property
    def broken(self) -> bool:
        """Whether a flag says that an attack went below the certificate."""
        return any(flag.name == FAULT for flag in self.record.flags)


def proved_masks(board: Board) -> dict[Row, ProvedMasks]:
    """Return the certificates of a board's rows; a row without one is left out."""
    found = {row: of_row(board, row) for row in board.rows}
    return {row: proved for row, proved in found.items() if proved is not None}


def of_row(board: Board, row: Row) -> ProvedMasks | None:
    """Return the certificate of a row, that of a flagged record first; None if it has none."""
    records = [run.record for run in row.runs.values() if run.record.status == "ok"]
    records.sort(key=lambda record: all(flag.name != FAULT for flag in record.flags))
    for record in records:
        proved = record.mask_certificate
        if proved is None:
            continue
        rung = _last_within(board, proved.radius)
        attacked = None if rung is None or not row.worst else row.worst[rung]
        return ProvedMasks(record, proved, attacked, 0.0 if rung is None else board.ladder[rung])
    return None


def _last_within(board: Board, radius: float) -> int | None:
    """Return the rung of the largest L2 radius that does not exceed the certified one."""
    if board.norm != "l2" or board.budget != "absolute" or board.objective != "untargeted":
        return None
    within = [rung for rung, eps in enumerate(board.ladder) if eps <= radius]
    return max(within, default=None)


def mask_words(proved: ProvedMasks) -> str:
    """Return the parameters of a certificate: "σ = 0.25, τ = 0.75, α = 0.001"."""
    record = proved.record
    try:
        parameters = spec.parse(record.case.defense).parameters
    except SpecError:
        parameters = {}
    card = {} if record.defense_card is None else record.defense_card.parameters
    both = {**card, **parameters, "alpha": proved.proved.alpha}
    signs = {"sigma": "σ", "tau": "τ", "alpha": "α"}
    return plain(
        ", ".join(f"{sign} = {both[name]}" for name, sign in signs.items() if name in both)
    )
