"""`verify`: recompute what a record claims."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_med.cli import choices
from robustbench_med.errors import BenchError, ResultsError

if TYPE_CHECKING:
    from robustbench_med.bench.record import Stored
    from robustbench_med.bench.verify.verify import Finding

_COMMITTED = Path("results")
_WORDS = ("match", "within rounding", "mismatch", "not verified")


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(verify)


def verify(
    records: Annotated[
        list[str],
        typer.Argument(
            metavar="RECORD...",
            help="Records: each by its folder, its record.json, or a case id (--results); or "
            "folders of records, such as results/quick.",
        ),
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
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", help="Where the record's own .npz file lies now; its hash is compared."
        ),
    ] = None,
    victim: Annotated[
        str | None,
        typer.Option(
            "--victim",
            "--model",
            help="Where the weights or the Python file of the record's own model lie now, or its "
            "whole spec as `run` takes it; its hash is compared.",
        ),
    ] = None,
    surrogate: Annotated[
        str | None, typer.Option("--surrogate", help="Likewise of its surrogate.")
    ] = None,
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
    """Recompute records: match, within rounding, or mismatch (exit code 1).

    Their cases are run again, with the weights, data and versions they name; or, with --images, the
    adversarial images beside them are judged. All they say is compared, but where and when they
    were made. Where another machine made them, what its arithmetic may move is measured by one more
    run.
    """
    from robustbench_med.bench import store
    from robustbench_med.bench.runner import Shared
    from robustbench_med.bench.verify.replay import Places
    from robustbench_med.bench.verify.verify import verify as recompute
    from robustbench_med.devices import device_of

    homes = [home for record in records for home in record_folders(record, results)]
    ready, done = Shared(device_of(device)), []
    places = Places(dataset, victim, surrogate)
    for home in dict.fromkeys(homes):
        try:
            stored = store.read(home)
            finding = recompute(
                stored,
                data=data,
                images=images,
                device=device,
                code=run_code,
                places=places,
                ready=ready,
            )
        except BenchError as error:
            if len(homes) == 1:
                raise
            done.append(("not verified", home))
            typer.echo(f"{home}\nnot verified: {error}")
            continue
        done.append((finding.word, home))
        if len(homes) > 1 or home.name in records:  # an id: say which was found
            typer.echo(f"record: {home}")
        _print(stored, finding, images)
    if len(done) > 1:
        _summary(done)
    words = [word for word, _ in done]
    if "mismatch" in words:
        raise typer.Exit(1)
    if "not verified" in words:
        raise typer.Exit(2)


def _print(stored: Stored, finding: Finding, images: bool) -> None:
    how = "from the saved images" if images else "by running the case again"
    typer.echo(f"{stored.record.case_id}  {stored.record.case.label}")
    typer.echo(f"{_verdict(finding)}, {how}")
    if finding.machines:
        typer.echo(f"  {finding.machines}")
    for line in finding.lines:
        typer.echo(f"  {line}")
    if images and finding.word != "mismatch":
        typer.echo("  checked: every image said to be broken, and its ball; not that others stand")


def _summary(done: list[tuple[str, Path]]) -> None:
    """Print how many records came to which word, and name those that do not match."""
    counts = {word: sum(one == word for one, _ in done) for word in _WORDS}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    typer.echo(f"\n{len(done)} records: {told}")
    for word in _WORDS[1:]:
        for one, home in done:
            if one == word:
                typer.echo(f"  {word:<15}  {home}")


def record_folders(record: str, results: Path) -> list[Path]:
    """Return the folders of the records that an argument names: one, or all below a folder.

    Below a folder that holds `local`, where `run` writes, those of `local` are left out.

    Raises:
        ResultsError: there is none, or an id lies in several folders.
    """
    from robustbench_med.bench import store

    path = Path(record)
    if not path.is_dir() or store.has_record(path):
        return [record_folder(record, results)]
    homes = store.homes_below(path)
    local = path / choices.LOCAL.name
    homes = [home for home in homes if not home.is_relative_to(local)] or homes
    if not homes:
        raise ResultsError(f"expected a record in {path}, or records below it, got none")
    return [home.resolve() for home in homes]


def record_folder(record: str, results: Path) -> Path:
    """Return the folder of a record named by folder, file, or case id.

    Of an id that lies in `results/local` too, where `run` writes, the committed record is taken.

    Raises:
        ResultsError: there is none, or the id lies in several folders.
    """
    from robustbench_med.bench import store

    path = Path(record)
    if path.name == store.RECORD:
        return path.parent.resolve()
    if path.is_dir() or store.has_record(path):
        return path.resolve()
    homes = store.homes_below(results) if path.name == record else []
    homes = [home for home in homes if home.name == record]
    local = results / choices.LOCAL.name
    homes = [home for home in homes if not home.is_relative_to(local)] or homes
    if len(homes) == 1:
        return homes[0].resolve()
    if homes:
        places = ", ".join(str(home) for home in homes)
        raise ResultsError(f"expected one record {record}, got several: name one of {places}")
    raise ResultsError(
        f"expected a record's folder, its record.json, or a case id below {results}, got {record!r}"
    )


def _verdict(finding: Finding) -> str:
    if not finding.samples:
        return finding.word
    if not finding.differing and finding.word == "within rounding":
        return f"{finding.word}: all {finding.samples} outcomes as recorded, some values near them"
    if not finding.differing:
        return f"{finding.word}: all {finding.samples} samples as recorded"
    return f"{finding.word}: {finding.differing} of {finding.samples} samples differ"
