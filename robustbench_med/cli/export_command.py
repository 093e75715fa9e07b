"""The command `export`: write the adversarial images of a record as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustbench_med.cli import choices
from robustbench_med.cli.verify_command import record_folder


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("export")(export_command)


def export_command(
    record: Annotated[
        str,
        typer.Argument(help="A record: its folder, its record.json, or a case id (see --results)."),
    ],
    kind: Annotated[str, typer.Option("--as", help="The kind of the files: dicom, nifti or png.")],
    out: Annotated[Path, typer.Option("--out", help="An empty or new folder for the files.")],
    eps: Annotated[
        str | None,
        typer.Option(
            "--eps", help="The radius of the images, one of the record's; by default the largest."
        ),
    ] = None,
    data: choices.Data = None,
    results: choices.RecordResults = Path("results"),
    dataset: choices.RecordDataset = None,
    victim: choices.RecordVictim = None,
    surrogate: choices.RecordSurrogate = None,
    run_code: choices.RunCode = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Write the successful adversarial images of a record as files, and judge them from there.

    The images are rounded to stored values, written without any header of a source file, marked as
    adversarial, read back, compared, and shown to the model again. `export.json` beside them says
    which of them still mislead it. Images that were not saved with the record are made again.
    """
    from robustbench_med.bench import store
    from robustbench_med.bench.verify.replay import Places
    from robustbench_med.export.export import MANIFEST, export

    made = export(
        store.read(record_folder(record, results)),
        kind,
        out,
        eps=eps,
        data=data,
        device=device,
        code=run_code,
        places=Places(dataset, victim, surrogate),
    )
    typer.echo(f"{made.case_id}  {made.attack}")
    typer.echo(f"written and read back: {made.written} images in {out} ({MANIFEST} lists them)")
    typer.echo(f"still succeed from the file: {made.succeed} of {made.written}")
    if made.over_budget:
        typer.echo(
            f"rounding moved {made.over_budget} of them past the radius by a part of a stored step"
        )
