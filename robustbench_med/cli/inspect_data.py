"""The command `inspect`, which looks at a person's data and writes their card file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_med.errors import DataError, SpecError

if TYPE_CHECKING:
    from robustbench_med.datasets.dataset import Dataset, SplitName
    from robustbench_med.datasets.sources.spec import CardFile

OUT = Path("mine.toml")
_MAX_SIDE = 2**16


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("inspect")(inspect_command)


def inspect_command(
    path: Annotated[
        Path,
        typer.Argument(
            help="A folder of images or of a saved dataset, a CSV table of images, a card file "
            "(.toml) or an .npz file."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The card file to write.")] = OUT,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the card file.")] = False,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            help="Resize the images to this size, e.g. 224 or 224x320; native: each keeps its own.",
        ),
    ] = None,
    volumes: Annotated[
        bool, typer.Option("--volumes", help="Take each DICOM series for one volume.")
    ] = False,
) -> None:
    """Look at your data, print what is in them, and write their card file for `run --dataset`."""
    from robustbench_med.datasets.saved_data import is_saved, load_saved
    from robustbench_med.datasets.sources.recognise import draft_of
    from robustbench_med.datasets.sources.spec import parse, read_card_file
    from robustbench_med.datasets.sources.survey import of_files
    from robustbench_med.datasets.sources.write import card_text
    from robustbench_med.files import write_text
    from robustbench_med.paths import check_name

    check_name(path)
    if not path.exists():
        raise DataError(f"{path}: expected a folder or file of your data, got nothing there")
    if path.suffix.lower() == ".toml" and path.is_file():
        _print_dataset(read_card_file(path), [])
        return
    if path.suffix.lower() == ".npz" and path.is_file():
        _print_npz(path)
        return
    if is_saved(path):
        dataset = load_saved(path)
        _print_known(path, dataset, dataset.compared)
        return
    if out.exists() and not force:
        raise SpecError(
            f"expected a new file for the card, got {out}, which exists: pass --force to overwrite "
            "it, or another name with --out"
        )
    draft = draft_of(path, size=None if size is None else _sides(size), volumes=volumes)
    text = card_text(draft, out)
    if draft.missing:
        _print("", of_files(draft))
        _print("recognised", draft.remarks)
        _print("missing", draft.missing)
        write_text(out, text)
        print(f"\nWrote {out}: complete it, and look at it again:")
        print(f"    python -m robustbench_med inspect {out}")
        raise typer.Exit(2)
    _print_dataset(parse(text, out), draft.remarks, of_files(draft))
    write_text(out, text)
    print(f"\nWrote {out}: correct it if something is wrong, then:")
    print(f"    python -m robustbench_med run --dataset {out} --model ...")


def _print_npz(path: Path) -> None:
    """Print what is in a file of arrays, which needs no card file."""
    from robustbench_med.datasets.load import load_dataset
    from robustbench_med.datasets.own import describe

    _print_known(path, load_dataset(path), describe(path).splits)


def _print_known(path: Path, dataset: Dataset, splits: Sequence[SplitName]) -> None:
    """Print what is in data that need no card file."""
    from robustbench_med.datasets.sources.survey import of_splits

    card = dataset.card
    shape = f"{card.size_words}x{card.channels}"
    counts = list(of_splits(dataset, splits))  # a line of them is printed only where all are known
    notes = [dataset.scored_on(split).card.notes[1:] for split in splits]
    _print("", [("modality", card.modality), ("size", shape), ("task", card.task)])
    _print("", counts)
    _print("look at", [note for each in notes for note in each])
    print(f"\nIt needs no card:\n    python -m robustbench_med run --dataset {path} --model ...")


def _print_dataset(
    card_file: CardFile, remarks: Iterable[str], files: Iterable[tuple[str, str]] = ()
) -> None:
    """Print what is in the data, how it was recognised, and what looks wrong; nothing if it fails.

    Args:
        card_file: describes the data.
        remarks: how they were recognised.
        files: what the headers of the files say.
    """
    from robustbench_med.datasets.sources.index import index_of
    from robustbench_med.datasets.sources.load import dataset_of
    from robustbench_med.datasets.sources.survey import of_dataset, warnings_of

    index = index_of(card_file)
    dataset = dataset_of(index)
    found, warnings = list(of_dataset(dataset, index)), list(warnings_of(dataset, index))
    _print("", files)
    _print("", found)
    _print("recognised", remarks)
    _print("look at", [*dataset.card.notes[1:], *warnings])


def _print(title: str, lines: Iterable[str | tuple[str, str]]) -> None:
    """Print lines, each behind its own name or the common title."""
    from robustbench_med.printable import plain

    for line in dict.fromkeys(lines):
        name, text = (title, line) if isinstance(line, str) else line
        print(f"{name:<11} {plain(text)}")


def _sides(text: str) -> list[int] | str:
    """Return the sides that `--size` states, or "native".

    Raises:
        SpecError: they are no numbers, or too many.
    """
    from robustbench_med.datasets.sources.spec import NATIVE

    if text.lower() == NATIVE:
        return NATIVE
    sides = text.lower().split("x")
    if len(sides) > 3 or not all(s.isdigit() and 0 < int(s) <= _MAX_SIDE for s in sides):
        raise SpecError(f"expected --size such as 224, 224x320 or {NATIVE}, got {text!r}")
    return [int(side) for side in (sides * 2 if len(sides) == 1 else sides)]
