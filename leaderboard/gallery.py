"""The pictures of a board (clean, perturbation, adversarial) as data URIs, under a size limit."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from robustbench_med.bench.record import Example, Stored

from .board import Board, Row

SHOWN = 6  # pictures a board, before its share of bytes
PAGE_BYTES = 3_000_000  # of data URIs on a page; leaves 2 MB for tables and curves
_PNG = b"\x89PNG\r\n\x1a\n"
_LARGEST = 400_000  # bytes of one picture file


@dataclass(frozen=True)
class Picture:
    """One example with its three images as data URIs."""

    victim: str
    column: str
    example: Example
    clean: str
    perturbation: str
    adversarial: str

    @property
    def size(self) -> int:
        """Characters the images take on the page."""
        return len(self.clean) + len(self.perturbation) + len(self.adversarial)


def gallery(board: Board, *, budget: int) -> list[Picture]:
    """Return up to SHOWN examples of the board within `budget` characters, spread over its victims.

    A picture that is missing, no PNG, too large or outside its record's folder is left out.
    """
    found: list[Picture] = []
    for row, column, example in _in_turn(board):
        picture = _picture(row, column, example)
        if picture and picture.size <= budget:
            budget -= picture.size
            found.append(picture)
        if len(found) == SHOWN:
            break
    return found


def _in_turn(board: Board) -> list[tuple[Row, str, Example]]:
    """Return the examples ordered so that victims take turns, and attacks within a victim do."""
    turns: list[tuple[int, int, Row, str, Example]] = []
    seen: set[tuple[int, str]] = set()
    for place, row in enumerate(board.rows):
        columns = [c for c in board.columns if c in row.runs]
        columns = columns[place % len(columns) :] + columns[: place % len(columns)]
        queues = [[(c, e) for e in row.runs[c].record.examples] for c in columns]
        turn = 0
        for depth in range(max(map(len, queues))):
            for queue in queues:
                if depth >= len(queue) or (place, queue[depth][1].sample) in seen:
                    continue
                seen.add((place, queue[depth][1].sample))
                turns.append((turn, place, row, *queue[depth]))
                turn += 1
    turns.sort(key=lambda item: item[:2])
    return [item[2:] for item in turns]


def _picture(row: Row, column: str, example: Example) -> Picture | None:
    run = row.runs[column]
    files = (example.clean, example.perturbation, example.adversarial)
    uris = [_data_uri(run, file) for file in files]
    return Picture(row.title, column, example, *uris) if all(uris) else None


def _data_uri(run: Stored, file: str) -> str:
    folder = Path(run.folder).resolve()
    path = (folder / file).resolve()
    if path.parent != folder or not path.is_file() or path.stat().st_size > _LARGEST:
        return ""
    data = path.read_bytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode()}" if data[:8] == _PNG else ""
