"""Build the document of a report from the records of one model. Files are read to be hashed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from robustbench_med.bench.failure import Failure
from robustbench_med.bench.record import Record, Stored

from ..boards.board import Board
from ..boards.ranking import make_boards
from ..wording.metrics import spacing_words
from ..wording.text import https, plain
from ..wording.threat_model import range_words
from .clauses import CLAUSES, FRAMEWORKS, STATEMENT
from .criteria import CriteriaFile
from .document import Data, Model, Report, Software, Use
from .evaluate_criteria import evaluate_criteria
from .evidence import evidence
from .model_boards import ModelBoard, find_victim, references, rows_of, single, victims
from .residual_risk import limits
from .threats import not_tested, threat_models


def build(
    records: Iterable[Stored],
    *,
    victim: str,
    base: Path,
    criteria: CriteriaFile | None = None,
    unreadable: Iterable[Failure | str] = (),
) -> tuple[Report, list[ModelBoard]]:
    """Return the document of a victim and its boards; the same records give the same document.

    Args:
        records: all records of a folder; those of other models show which attacks did not run on
            this one.
        victim: its registry name or spec in the records, or a title that no other model has.
        base: the folder that the paths of the records are relative to.
        criteria: acceptance criteria that were written before the run.
        unreadable: each record that could not be read, or a line on it if no more is known.

    Raises:
        ResultsError: there is no record, or no record of that victim can be read.
        UnknownNameError: no record is of that victim.
    """
    source = Source.of(records, unreadable)
    return source.document(source.find(victim), base=base, criteria=criteria)


class Source(NamedTuple):
    """The records of a folder, from which the reports on all its models are built.

    Attributes:
        records: one record for each case.
        boards: the boards of all models.
        lines: a line for each record that is not used, with the reason.
        failures: records that could not be read.
    """

    records: list[Stored]
    boards: list[Board]
    lines: list[str]
    failures: list[Failure]

    @classmethod
    def of(cls, records: Iterable[Stored], unreadable: Iterable[Failure | str] = ()) -> Source:
        """Return the source of the records of a folder; the arguments are those of `build`."""
        unique, lines = single(records)
        failures = [
            line if isinstance(line, Failure) else Failure(label="", reason=line)
            for line in unreadable
        ]
        read = {stored.record.case_id for stored in unique}
        missing = [f for f in failures if f.case is not None and f.case.id not in read]
        return cls(unique, make_boards(unique, missing) if unique else [], lines, failures)

    @property
    def victims(self) -> dict[str, str]:
        """The models with a record, name -> title."""
        return victims(self.records)

    def find(self, query: str) -> str:
        """Return the name of a model that is requested by name or title; see `find_victim`."""
        return find_victim(self.records, query, self.failures)

    def document(
        self, victim: str, *, base: Path, criteria: CriteriaFile | None = None
    ) -> tuple[Report, list[ModelBoard]]:
        """Return the document and the boards of a victim, whose name `find` returned."""
        model_boards = rows_of(self.boards, victim)
        runs = [run.record for model_board in model_boards for run in model_board.runs.values()]
        # a damaged record that is known to be of another model does not matter here
        damaged = tuple(
            plain(failure.reason)
            for failure in self.failures
            if failure.case is None or failure.case.victim == victim
        )
        doubts = (_damaged(len(damaged)),) if damaged else ()
        document = Report(
            victim=victim,
            title=plain(model_boards[0].row.model.title),
            statement=STATEMENT,
            frameworks=FRAMEWORKS,
            clauses=CLAUSES,
            models=_models(model_boards),
            data=_data(runs),
            software=_software(runs),
            tested=threat_models(model_boards),
            not_tested=not_tested(model_boards),
            criteria=None
            if criteria is None
            else evaluate_criteria(criteria, model_boards, doubts),
            boards=tuple(evidence(model_board, model_boards) for model_board in model_boards),
            limits=limits(model_boards, [*self.lines, *doubts]),
            unreadable=damaged,
            command=_command(victim, base, criteria),
            records=tuple(references(model_boards, base).values()),
        )
        return document, model_boards


def _damaged(count: int) -> str:
    many = "1 record" if count == 1 else f"{count} records"
    return f"{many} in the folder could not be read and may be about this model"


def _command(victim: str, base: Path, criteria: CriteriaFile | None) -> str:
    """Return the command that makes the report again in the same working folder."""
    words = ["python", "-m", "robustbench_med", "report", "--victim", victim, str(base)]
    command = shlex.join([*words, *(["--criteria", criteria.command] if criteria else [])])
    return command if command.isprintable() else plain(command)


def _grouped(runs: list[Record], key: Callable[[Record], str]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in runs:
        groups.setdefault(key(record), []).append(record)
    return groups


def _ids(records: list[Record]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(record.case_id for record in records))


def _data_key(record: Record) -> str:
    case = record.case
    return json.dumps([case.data_sha256, case.train_sha256, case.split, record.n])


def _software_key(record: Record) -> str:
    same = {"started": "", "command": ""}
    return record.provenance.model_copy(update=same).model_dump_json()


def _models(model_boards: list[ModelBoard]) -> tuple[Model, ...]:
    """Return a model for each state of the weights from which records were made."""
    runs = [run.record for model_board in model_boards for run in model_board.runs.values()]
    shields = {model_board.row.key.weights: list[str]() for model_board in model_boards}
    for model_board in model_boards:
        shields[model_board.row.key.weights] += (
            [model_board.row.defense_title] if model_board.row.defense_title else []
        )
    models = []
    for weights, records in _grouped(runs, lambda r: r.case.victim_sha256).items():
        card = records[0].model_card
        measured = card.measured
        name, value = measured.headline if measured else ("", 0.0)
        trained = f"not stated; its classes are those of {card.dataset}"
        if card.recipe is not None:
            hardened = card.recipe.defense
            trained = card.dataset + (f", trained with {hardened}" if hardened else "")
        models.append(
            Model(
                name=plain(card.name),
                title=plain(card.title),
                summary=plain(card.summary),
                family=plain(card.family),
                builder=plain(card.builder),
                preprocess=plain(card.preprocess),
                parameters=measured.parameters if measured else None,
                source=plain(card.source),
                training_data=plain(trained),
                stated=f"{name} {value:.3f}" if measured else "",
                weights_sha256=plain(card.sha256),
                victim_sha256=weights,
                defenses=tuple(dict.fromkeys(shields[weights])),
                records=_ids(records),
            )
        )
    return tuple(models)


def _data(runs: list[Record]) -> tuple[Data, ...]:
    datasets = []
    for records in _grouped(runs, lambda r: r.case.dataset).values():
        card = records[0].dataset_card
        datasets.append(
            Data(
                name=plain(card.name),
                heading=plain(card.heading),
                summary=plain(card.summary),
                modality=plain(card.modality),
                classes=tuple(map(plain, card.classes)),
                native_range=range_words(card),
                bit_depth=card.bit_depth,
                pixel=spacing_words(card),
                synthetic=card.synthetic,
                source=plain(card.source),
                licence=plain(card.licence),
                url=https(card.url),
                notes=tuple(map(plain, card.notes)),
                uses=tuple(map(_use, _grouped(records, _data_key).values())),
            )
        )
    return tuple(datasets)


def _use(records: list[Record]) -> Use:
    case = records[0].case
    return Use(
        data_sha256=case.data_sha256,
        train_sha256=case.train_sha256,
        split=case.split,
        n=records[0].n,
        patients=records[0].patients,
        records=_ids(records),
    )


def _software(runs: list[Record]) -> tuple[Software, ...]:
    versions = []
    for records in _grouped(runs, _software_key).values():
        provenance = records[0].provenance
        times = sorted(record.provenance.started for record in records)
        versions.append(
            Software(
                **provenance.model_dump(exclude={"started", "command"}),
                first=times[0],
                last=times[-1],
                records=_ids(records),
            )
        )
    return tuple(versions)
