"""Commands that compute missing results of a page: another attack, radius or goal for a row."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from robustbench_med.bench.case import Case
from robustbench_med.bench.record import Stored
from robustbench_med.cards import SEVERITY
from robustbench_med.spec import Spec

from ..boards.board import Row
from .text import plain


def commands(
    row: Row, columns: Sequence[str], rows: Sequence[Row], *, ladder: Sequence[float] = ()
) -> str:
    """Return the commands that run the attacks of `columns` on the victim of a row.

    Args:
        row: the row, with its victim, defense, operating point and passes.
        columns: columns of the board.
        rows: rows of the board. An attack is run with the setting of the first row that has it; an
            attack that no row has gives no command.
        ladder: radii; by default those of that run.
    """
    lines: dict[str, None] = {}
    for column in columns:
        run = next((r.runs[column] for r in rows if column in r.runs), None)
        if run is not None:
            lines[rerun_command(run, row=row, ladder=ladder)] = None
    return "; ".join(lines)


def rerun_command(
    run: Stored, *, row: Row | None = None, objective: str = "", ladder: Sequence[float] = ()
) -> str:
    """Return the command that repeats a run with another victim, goal or ladder.

    Args:
        run: the record to repeat.
        row: the row whose victim is attacked instead, with its operating point and passes.
        objective: the goal to use instead.
        ladder: the radii to use instead.
    """
    case, start = run.record.case, _suite(run.record.provenance.command)
    judged = case if row is None else row.key
    words = [*start, "--dataset", case.dataset, "--victim", judged.victim]
    words += ["--attack", str(Spec(case.attack, _stated(run)))]
    sizes = ",".join(_radius(e, case) for e in ladder or case.ladder)
    shift = case.norm == SEVERITY
    words += ["--severity", sizes] if shift else ["--norm", case.norm, "--eps", sizes]
    channels = " + ".join(k if v == 1 else f"{k}={v:g}" for k, v in case.channels.items())
    bare = judged.defense == "none"
    options = {
        "--budget": (case.budget, "absolute"),
        "--defense": (judged.defense, "none"),
        "--knowledge": ("adaptive" if bare else case.knowledge, "adaptive"),
        "--surrogate": (case.surrogate, None),
        "--channels": (channels, ""),
        "--operating-point": (judged.operating_point, "youden"),
        "--guide": (case.guide, "float32"),
        "--draws": (judged.draws, 1),
        "-n": (case.n, None),
        "--seed": (case.seed, 0),
        "--objective": (objective or case.objective, "" if objective else "untargeted"),
    }
    for flag, (value, default) in options.items():
        words += [] if value == default else [flag, str(value)]
    return plain(shlex.join(words))


def _radius(eps: float, case: Case) -> str:
    grey = case.norm == "linf" and case.budget == "absolute"
    return f"{eps * 255:.6g}/255" if grey else f"{eps:.6g}"


def _stated(run: Stored) -> dict[str, Any]:
    """Return the parameters of a run that are not the defaults of its card."""
    case, card = run.record.case, run.record.attack_card
    return {k: v for k, v in case.parameters.items() if v != card.parameters.get(k)}


def _suite(command: str) -> list[str]:
    """Return the start of the command that made a record: the suite and the folder of its data."""
    start = ["python", "-m", "robustbench_med", "run"]
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    if words[: len(start)] != start:
        return start
    suite = [word for word in words[len(start) : len(start) + 1] if not word.startswith("-")]
    data = words.index("--data") if "--data" in words[:-1] else None
    return [*start, *suite, *([] if data is None else words[data : data + 2])]
