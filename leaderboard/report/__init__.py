"""Write reports: the evidence on one model for an assessor, as an HTML and a JSON file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from robustbench_med.bench.failure import Failure
from robustbench_med.bench.record import Stored
from robustbench_med.files import write_text

from .build import Source, build
from .criteria import CriteriaFile, read_criteria
from .document import Report
from .render import render
from .suggestions import unjudged

__all__ = [
    "CriteriaFile",
    "Report",
    "Written",
    "build",
    "read_criteria",
    "render",
    "unjudged",
    "write_report",
    "write_reports",
]


class Written(NamedTuple):
    """The files of a report, and their content."""

    html: Path
    json: Path
    document: Report


def write_report(
    records: Iterable[Stored],
    *,
    victim: str,
    base: Path,
    out: Path,
    criteria: CriteriaFile | None = None,
    unreadable: Iterable[Failure | str] = (),
) -> Written:
    """Write `report-VICTIM.html` and `.json` into `out`, each in one step.

    Args:
        records: all records of `base`, those of other models too.
        victim: the model, by its name in the records or by its title.
        base: the folder of the records; the report states paths relative to it.
        out: the folder of the files.
        criteria: acceptance criteria that were written before the run.
        unreadable: each record that could not be read, or a line on it if no more is known.

    Raises:
        ResultsError: there is no record, or no record of that victim can be read.
        UnknownNameError: no record is of that victim.
    """
    source = Source.of(records, unreadable)
    return _write(source, source.find(victim), base, out, criteria)


def write_reports(
    records: Iterable[Stored],
    *,
    victims: Iterable[str] = (),
    base: Path,
    out: Path,
    criteria: CriteriaFile | None = None,
    unreadable: Iterable[Failure | str] = (),
) -> Iterator[Written]:
    """Write a report on each model, and yield each report after its files are written.

    Args:
        records: all records of `base`.
        victims: the models, by name or title; by default every model with a record, sorted by name.
        base: the folder of the records.
        out: the folder of the files.
        criteria: acceptance criteria that were written before the run; each model is judged by
            them.
        unreadable: as in `write_report`.

    Raises:
        ResultsError, UnknownNameError: as in `write_report`, before the first file is written.
    """
    source = Source.of(records, unreadable)
    named = list(dict.fromkeys(source.find(name) for name in victims))
    if not named and not source.records:
        source.find("")
    return (_write(source, name, base, out, criteria) for name in named or source.victims)


def _write(
    source: Source, victim: str, base: Path, out: Path, criteria: CriteriaFile | None
) -> Written:
    document, model_boards = source.document(victim, base=base, criteria=criteria)
    stem = f"report-{file_name(victim)}"
    page = write_text(out / f"{stem}.html", render(document, model_boards))
    data = write_text(out / f"{stem}.json", document.model_dump_json(indent=1) + "\n")
    return Written(page, data, document)


def file_name(victim: str) -> str:
    """Return a victim's name for a file name; if characters had to be replaced, a hash follows.

    >>> file_name("lungs_fcn"), file_name("timm:resnet18(pretrained=True)")
    ('lungs_fcn', 'timm-resnet18-pretrained-True-9a6f71ad')
    """
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", victim).strip("-.")[:80]
    if plain == victim:
        return plain
    return f"{plain}-{hashlib.sha256(victim.encode()).hexdigest()[:8]}"
