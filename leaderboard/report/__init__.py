"""Report: evidence on one model, for an assessor: one HTML file and one JSON."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from robustbench_med.bench.record import Stored

from ..table import write_text
from .build import build
from .criteria import Given, read_criteria
from .document import Report
from .render import render

__all__ = ["Given", "Report", "Written", "build", "read_criteria", "render", "write_report"]


class Written(NamedTuple):
    """The files of a report, and what stands in them."""

    html: Path
    json: Path
    document: Report


def write_report(
    records: Iterable[Stored],
    *,
    victim: str,
    base: Path,
    out: Path,
    criteria: Given | None = None,
    unreadable: Iterable[str] = (),
) -> Written:
    """Write `report-VICTIM.html` and `.json` into `out`, each in one step.

    Args:
        records: all of `base`; of every model.
        victim: the model reported on.
        base: folder the records lie in; paths are given below it.
        out: where the files go.
        criteria: acceptance criteria given beforehand.
        unreadable: a line a record that could not be read.

    Raises:
        ResultsError: no record.
        UnknownNameError: none of that victim.
    """
    document, chosen = build(
        records, victim=victim, base=base, criteria=criteria, unreadable=unreadable
    )
    stem = f"report-{file_name(victim)}"
    page = write_text(out / f"{stem}.html", render(document, chosen))
    data = write_text(out / f"{stem}.json", document.model_dump_json(indent=1) + "\n")
    return Written(page, data, document)


def file_name(victim: str) -> str:
    """Return a victim as part of a file name; one that cannot be has a hash of it at its end.

    >>> file_name("lungs_fcn"), file_name("timm:resnet18(pretrained=True)")
    ('lungs_fcn', 'timm-resnet18-pretrained-True-9a6f71ad')
    """
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", victim).strip("-.")[:80]
    if plain == victim:
        return plain
    return f"{plain}-{hashlib.sha256(victim.encode()).hexdigest()[:8]}"
