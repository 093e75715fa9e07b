"""What a person may choose of a suite on the command line, shared by `run` and `plan`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from robustbench_med.bench.suite import Suite

LOCAL = Path("results/local")

SuiteName = Annotated[str, typer.Argument(help="A shipped suite (list suites) or a TOML file.")]
Data = Annotated[
    Path | None, typer.Option("--data", help="Folder with the .npz files of real datasets.")
]
Results = Annotated[Path, typer.Option("--results", help="Where records are written.")]
Datasets = Annotated[
    list[str] | None,
    typer.Option("--dataset", help="This dataset instead, or your own .npz file; repeatable."),
]
Victims = Annotated[
    list[str] | None,
    typer.Option(
        "--victim",
        "--model",
        help="This victim instead, or timm:NAME(weights='FILE.safetensors'), of masks "
        "smp:NAME(...) or monai:NAME(...), or FILE.py:FACTORY(...), which executes your file; "
        "repeatable.",
    ),
]
Attacks = Annotated[
    list[str] | None,
    typer.Option("--attack", help="This attack instead, e.g. 'pgd(steps=40)'; repeatable."),
]
Defenses = Annotated[
    list[str] | None,
    typer.Option(
        "--defense",
        help="Wrap the victims, e.g. 'jpeg(quality=50)'; none; repeatable: a case each.",
    ),
]
Knowledge = Annotated[
    list[str] | None,
    typer.Option(
        "--knowledge",
        help="adaptive: the attacker knows the defense; oblivious: not; the name of a detector: "
        "evades that one instead; repeatable: a case each.",
    ),
]
Eps = Annotated[
    str | None, typer.Option("--eps", help="Radii in [0,1] units, e.g. '1/255,2/255,4/255'.")
]
Norm = Annotated[str | None, typer.Option("--norm", help="linf, l2, l1 or l0.")]
Channels = Annotated[
    list[str] | None,
    typer.Option(
        "--channels",
        help="Only these channels may change, e.g. 'T1 + FLAIR=0.5' (with a share of the radius); "
        "repeatable: a case each.",
    ),
]
Objective = Annotated[
    str | None,
    typer.Option(
        "--objective",
        help="untargeted, targeted(target=1) or finding(index=0); of masks also "
        "region(name='...'), targeted(mask='heart', label=1).",
    ),
]
OperatingPoint = Annotated[
    Literal["youden", "argmax"] | None,
    typer.Option("--operating-point", help="Threshold chosen on validation, or the model's own."),
]
Guide = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(
        "--guide", help="Precision of the gradients; success is always judged in float32."
    ),
]
Surrogates = Annotated[
    list[str] | None,
    typer.Option(
        "--surrogate",
        help="Attack this model in the victim's place (transfer, no box); '*' = every other victim "
        "of the dataset; repeatable.",
    ),
]
Budget = Annotated[
    Literal["absolute", "mean_norm"] | None,
    typer.Option("--budget", help="mean_norm: radii are ratios of a training image's mean norm."),
]
Averaged = Annotated[
    int | None,
    typer.Option(
        "--draws", min=1, help="Forward passes averaged: for victims that answer at random (EOT)."
    ),
]
Number = Annotated[int | None, typer.Option("-n", min=1, help="Images of each dataset.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the suite.")]

_GRID = {
    "dataset": "datasets",
    "victim": "victims",
    "defense": "defenses",
    "knowledge": "knowledge",
    "attack": "attacks",
    "eps": "ladder",
    "norm": "norm",
    "channels": "channels",
    "objective": "objective",
    "operating_point": "operating_point",
    "guide": "guide",
    "surrogate": "surrogates",
    "budget": "budget",
    "draws": "draws",
    "n": "n",
}


def suite_of(choices: Mapping[str, Any]) -> Suite:
    """Return the chosen suite with the other choices in place of its own."""
    from robustbench_med.bench.suite import find_suite, override

    given = {
        field: choices[key] for key, field in _GRID.items() if choices[key] not in (None, [], ())
    }
    if "ladder" in given:
        given["ladder"] = [part.strip() for part in given["ladder"].split(",")]
    return override(find_suite(choices["suite"]), given, choices["seed"])


def command_of(choices: Mapping[str, Any]) -> str:
    """Return the command that runs these choices again; the runner adds a case's id."""
    words = ["python", "-m", "robustbench_med", "run", choices["suite"]]
    for key in ("data", *_GRID, "seed"):
        value = choices[key]
        flag = f"-{key}" if len(key) == 1 else f"--{key.replace('_', '-')}"
        for one in value if isinstance(value, list | tuple) else [value]:
            words += [] if one is None else [flag, str(one)]
    if choices.get("save_images"):
        words.append("--save-images")
    return shlex.join(words)
