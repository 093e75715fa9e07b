"""`verify`: recompute what a record claims."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_med.cli import choices
from robustbench_med.errors import ResultsError

if TYPE_CHECKING:
    from robustbench_med.bench.verify import Finding

_COMMITTED = Path("results")


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(verify)


def verify(
    record: Annotated[
        str, typer.Argument(help="A record's folder, its record.json, or a case id (--results).")
    ],
    data: choices.Data = None,
    results: Annotated[
        Path, typer.Option("--results", help="Where records of that id are looked for.")
    ] = _COMMITTED,
    images: Annotated[
        bool,
        typer.Option(
            "--images", help="Judge the images that `run --save-images` kept; attack nothing."
        ),
    ] = False,
    run_code: Annotated[
        bool,
        typer.Option(
            "--run-code",
            help="Execute the Python file that the record names as its model (FILE.py:FACTORY); "
            "without it such a record is refused.",
        ),
    ] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Recompute a record: match, within interval, or mismatch (exit code 1).

    Its case is run again, with the weights, data and versions it names; or, with --images, the
    adversarial images beside it are judged. All it says is compared, but where and when it was
    made.
    """
    from robustbench_med.bench import store
    from robustbench_med.bench.verify import verify as recompute

    home = record_folder(record, results)
    stored = store.read(home)
    finding = recompute(stored, data=data, images=images, device=device, code=run_code)
    if home.name == record:  # its id: say which was found
        typer.echo(f"record: {home}")
    how = "from the saved images" if images else "by running the case again"
    typer.echo(f"{stored.record.case_id}  {stored.record.case.label}")
    typer.echo(f"{_verdict(finding)}, {how}")
    for line in finding.lines:
        typer.echo(f"  {line}")
    if images and finding.word != "mismatch":
        typer.echo("  checked: every image said to be broken, and its ball; not that others stand")
    if finding.word == "mismatch":
        raise typer.Exit(1)


def record_folder(record: str, results: Path) -> Path:
    """Return the folder of a record named by folder, file, or case id.

    Of an id that lies in `results/local` too, where `run` writes, the committed record is taken.

    Raises:
        ResultsError: there is none, or the id lies in several folders.
    """
    path = Path(record)
    if path.name == "record.json":
        return path.parent.resolve()
    if path.is_dir():
        return path.resolve()
    found = sorted(results.rglob(f"{path.name}/record.json")) if path.name == record else []
    local = results / choices.LOCAL.name
    found = [one for one in found if not one.is_relative_to(local)] or found
    if len(found) == 1:
        return found[0].parent.resolve()
    if found:
        places = ", ".join(str(one.parent) for one in found)
        raise ResultsError(f"expected one record {record}, got several: name one of {places}")
    raise ResultsError(
        f"expected a record's folder, its record.json, or a case id below {results}, got {record!r}"
    )


def _verdict(finding: Finding) -> str:
    if not finding.samples:
        return finding.word
    if not finding.differing:
        return f"{finding.word}: all {finding.samples} samples as recorded"
    return f"{finding.word}: {finding.differing} of {finding.samples} samples differ"
