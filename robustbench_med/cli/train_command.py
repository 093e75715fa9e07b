"""The command `train`: a shipped model by its recipe, or a model on a person's own data."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustbench_med.cli import choices
from robustbench_med.errors import SpecError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from robustbench_med.cards import ModelCard
    from robustbench_med.datasets.dataset import Dataset

_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(train)


def train(
    card: Annotated[
        str | None,
        typer.Argument(
            help="A shipped model, which is trained by the recipe in its card; `list models` "
            "prints them. Leave it out to train --model on --dataset."
        ),
    ] = None,
    data: choices.Data = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", help="The data of a model of your own: a name, a .npz file or mine.toml."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="The architecture of a model of your own: timm:NAME, for masks smp:NAME(...) or "
            "monai:NAME(...), or FILE.py:FACTORY, which executes your file. weights='FILE' or "
            "pretrained=True is what it starts from.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The name of your own model on boards.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The folder for the weights and the card: by default results/local/zoo, or the "
            "cache folder for a model whose weights are not shipped.",
        ),
    ] = None,
    defense: Annotated[
        str | None,
        typer.Option(
            "--defense",
            help="A defense to train with, e.g. 'pgd_at(eps=4/255)'; see `list defenses`.",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="The number of epochs, in place of the recipe's."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=2, help="The number of images of a step.")
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(
            "--accumulate",
            min=1,
            help="Split each batch into so many parts, and add up their gradients: less memory, "
            "the same step but for batch norm.",
        ),
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="The highest learning rate.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            help="The weights that the training starts from: a shipped victim, a card or a "
            "weights file.",
        ),
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(
            "--ema", help="Decay of the moving average of the weights, e.g. 0.95; 0 = off."
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option("--patience", help="Stop after so many epochs without a better validation."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="float32, or bfloat16 for mixed precision.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="The seed of the training.")] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", help="auto, cpu, cuda, cuda:1, ...; by default auto, and cpu for a card."
        ),
    ] = None,
) -> None:
    """Train a shipped model by the recipe in its card, or --model on --dataset.

    The weights and the card are written into --out. The training is seeded. When it is stopped and
    the command runs again, it goes on from its last epoch, on the CPU to the same weights.
    """
    from rich.console import Console

    from robustbench_med.bench.store import check_writable
    from robustbench_med.devices import device_of

    changes = {
        "epochs": epochs,
        "batch": batch,
        "accumulate": accumulate,
        "lr": lr,
        "start": start,
        "ema": ema,
        "patience": patience,
        "precision": precision,
        "seed": seed,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    console = Console()
    if card is not None:
        if dataset or model or name:
            raise SpecError(
                f"expected a shipped model, or --dataset and --model, got both: {card} and "
                f"{dataset or model or name}"
            )
        model_card, loaded, home = _of_shipped(card, data, out, defense, changes)
        _train(model_card, loaded, home, console, device=device_of(device or "cpu"))
        return
    if not (dataset and model and out):
        lacking = next(
            option
            for option, value in (("--dataset", dataset), ("--model", model), ("--out", out))
            if not value
        )
        raise SpecError(
            f"expected a shipped model, or --dataset, --model and --out, got no {lacking}"
        )
    where = device_of(device or "auto")
    check_writable(out, option="--out")
    from robustbench_med.datasets.load import load_dataset
    from robustbench_med.training.own import STEM, own_card

    loaded = load_dataset(dataset, data=data)
    model_card = own_card(
        model, loaded, dataset, out, title=name or "", defense=defense or "", changes=changes
    )
    _train(model_card, loaded, out, console, device=where, stem=STEM)
    words = ["python", "-m", "robustbench_med", "run", "--dataset", dataset]
    words += ["--model", str(out / f"{STEM}.json")]
    console.print(f"to attack it: {shlex.join(words)}", **_PLAIN)


def _of_shipped(
    name: str,
    data: Path | None,
    out: Path | None,
    defense: str | None,
    changes: dict[str, Any],
) -> tuple[ModelCard, Dataset, Path]:
    """Return the card of a shipped model, its data, and the folder of its weights."""
    from robustbench_med import registry
    from robustbench_med.bench.store import check_writable
    from robustbench_med.datasets.load import load_dataset
    from robustbench_med.models.trained_here import home_of
    from robustbench_med.training import train as training

    model_card: ModelCard = registry.find("models", name)
    recipe = model_card.recipe
    if defense is not None:
        model_card = training.defended(model_card, defense)
    model_card = training.adjusted(model_card, changes)
    training.check(model_card)
    if out is None:
        unchanged = model_card.trained_here and model_card.recipe == recipe
        out = home_of(model_card) if unchanged else Path("results/local/zoo")
    check_writable(out, option="--out")
    return model_card, load_dataset(model_card.dataset, data=data), out


def _train(
    model_card: ModelCard,
    data: Dataset,
    out: Path,
    console: Console,
    *,
    device: torch.device,
    stem: str = "",
) -> None:
    """Train the model of a card, and print its progress, its score and its files."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from robustbench_med.training import train as training

    bar = Progress(
        TextColumn(f"{model_card.name} on {model_card.dataset}", markup=False),
        BarColumn(24),
        TextColumn("{task.percentage:>3.0f} %, time left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=1.0)
        trained = training.train(
            model_card,
            data,
            out,
            stem=stem,
            device=device,
            threads=None if stem else 1,
            progress=lambda fraction: bar.update(task, completed=fraction),
            log=lambda line: bar.console.print(line, **_PLAIN),
            announce=lambda line: bar.console.print(line, **_PLAIN),
        )
    if trained.measured is None:
        raise RuntimeError("train returned a card without measurements")
    name, value = trained.measured.headline
    console.print(
        f"{out / trained.weights}: {name} {value:.3f}, "
        f"sha256 {trained.sha256[:12]}...{_compare(trained.sha256, model_card.sha256)}",
        **_PLAIN,
    )


def _compare(trained: str, shipped: str) -> str:
    """Return whether the hash of the trained weights is that of the shipped ones."""
    if not shipped:
        return ""
    return (
        ", the same as the shipped weights" if trained == shipped else ", not the shipped weights"
    )
