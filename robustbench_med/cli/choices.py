"""Options of the command line that replace parts of a suite, shared by `run` and `plan`."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from robustbench_med.errors import SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from robustbench_med.bench.resolved_case import ResolvedCase
    from robustbench_med.bench.suite import Suite
    from robustbench_med.studies.study import Study

LOCAL = Path("results/local")
# read by models/deployed/server.py
REQUESTS, REQUESTS_OF_RUN = "ROBUSTBENCH_MED_MAX_REQUESTS", "ROBUSTBENCH_MED_REQUESTS_OF_RUN"
STUDIES = "studies"  # the name of the suite that is made of the studies' cases

SuiteName = Annotated[
    str, typer.Argument(help="A shipped suite (see `list suites`) or a TOML file.")
]
Data = Annotated[
    Path | None, typer.Option("--data", help="The folder with the .npz files of real datasets.")
]
Results = Annotated[Path, typer.Option("--results", help="The folder where records are written.")]
Studies = Annotated[
    list[str] | None,
    typer.Option("--study", help="Run only this study of the suite `studies`; repeatable."),
]
Datasets = Annotated[
    list[str] | None,
    typer.Option("--dataset", help="Use this dataset, or your own .npz file; repeatable."),
]
Victims = Annotated[
    list[str] | None,
    typer.Option(
        "--victim",
        "--model",
        help="Attack this victim: a shipped one, timm:NAME(weights='FILE.safetensors'), for masks "
        "smp:NAME(...) or monai:NAME(...), or FILE.py:FACTORY(...), which executes your file; a "
        "deployed model as FILE.onnx, a TorchScript archive or http://HOST/v2/models/NAME; "
        "repeatable.",
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        "--name",
        help="The name of your own model on boards and in records, in place of the text of its "
        "--victim.",
    ),
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        help="What the device does to a stored image before the network, e.g. 'window(40, 400), "
        "resize(224, 224), stack(3)'; the attacked image is the stored one.",
    ),
]
Attacks = Annotated[
    list[str] | None,
    typer.Option(
        "--attack",
        help="Use this attack, e.g. 'pgd(steps=40)', or FILE.py:FUNCTION, which executes your "
        "file; repeatable.",
    ),
]
Defenses = Annotated[
    list[str] | None,
    typer.Option(
        "--defense",
        help="Wrap the victims in this defense, e.g. 'jpeg(quality=50)', FILE.py:FUNCTION, which "
        "executes your file, or 'none'; repeatable, one case each.",
    ),
]
Knowledge = Annotated[
    list[str] | None,
    typer.Option(
        "--knowledge",
        help="What the attacker knows about the defense. adaptive: all of it; oblivious: nothing; "
        "the name of a detector: the attack evades that one instead; repeatable, one case each.",
    ),
]
Eps = Annotated[
    str | None,
    typer.Option(
        "--eps",
        help="The radii as fractions of the stored range, '1/255,2/255', or in its unit, "
        "'5HU,10HU' or '4gl' (stored steps), or of the victim's window, '8/255 window'.",
    ),
]
Severity = Annotated[
    str | None,
    typer.Option("--severity", help="The severities of shifts, from 0 to 1, e.g. '0.25,0.5'."),
]
Norm = Annotated[
    str | None, typer.Option("--norm", help="The norm of the perturbation: linf, l2, l1 or l0.")
]
Channels = Annotated[
    list[str] | None,
    typer.Option(
        "--channels",
        help="The channels that may change, e.g. 'T1 + FLAIR=0.5', where FLAIR may change by half "
        "of the radius; repeatable, one case each.",
    ),
]
Objective = Annotated[
    str | None,
    typer.Option(
        "--objective",
        help="The attacker's goal: untargeted, targeted(target=1) or finding(index=0); for masks "
        "untargeted, region(name='...') or targeted(mask='heart', label=1).",
    ),
]
OperatingPoint = Annotated[
    Literal["youden", "argmax"] | None,
    typer.Option(
        "--operating-point", help="The decision threshold: youden, chosen on validation, or argmax."
    ),
]
Guide = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(
        "--guide", help="The precision of the gradients; success is always decided in float32."
    ),
]
Surrogates = Annotated[
    list[str] | None,
    typer.Option(
        "--surrogate",
        help="Attack this model and show the images to the victim (transfer, no box); '*' = every "
        "other victim of the dataset; repeatable.",
    ),
]
Budget = Annotated[
    Literal["absolute", "mean_norm"] | None,
    typer.Option(
        "--budget", help="mean_norm: the radii are fractions of the mean norm of a training image."
    ),
]
Averaged = Annotated[
    int | None,
    typer.Option(
        "--draws",
        min=1,
        help="How many forward passes are averaged, for victims with random outputs (EOT).",
    ),
]
Number = Annotated[
    int | None, typer.Option("-n", min=1, help="How many images of each dataset are used.")
]
CheckData = Annotated[
    bool,
    typer.Option(
        "--check-data",
        help="Read large data files to their last byte, even those whose checksum is known from an "
        "earlier run and whose size, times and inode are the same.",
    ),
]
# of a record that is run again
RecordResults = Annotated[
    Path, typer.Option("--results", help="The folder in which a case id is looked up.")
]
RecordDataset = Annotated[
    str | None,
    typer.Option(
        "--dataset", help="The record's own .npz file, where it is now; its hash is compared."
    ),
]
RecordVictim = Annotated[
    str | None,
    typer.Option(
        "--victim",
        "--model",
        help="The weights or the Python file of the record's own model, where they are now, or "
        "its whole spec as `run` takes it; its hash is compared.",
    ),
]
RecordSurrogate = Annotated[
    str | None, typer.Option("--surrogate", help="The same for its surrogate.")
]
RunCode = Annotated[
    bool,
    typer.Option(
        "--run-code",
        help="Execute the Python file that the record names as its model (FILE.py:FACTORY); "
        "without this option such a record is refused.",
    ),
]
MaxRequests = Annotated[
    int | None,
    typer.Option(
        "--max-requests",
        min=1,
        help="How many requests the whole run may send to a model behind an address (http://...), "
        "retries included. A case that would need more is not scored.",
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="The seed, in place of the suite's.")]

GRID_OPTIONS = {
    "dataset": "datasets",
    "victim": "victims",
    "preprocess": "preprocess",
    "defense": "defenses",
    "knowledge": "knowledge",
    "attack": "attacks",
    "eps": "ladder",
    "severity": "severity",
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
    """Return the suite with the options of the command line in place of its own fields."""
    from robustbench_med.bench.suite import override

    fields = {
        field: choices[key]
        for key, field in GRID_OPTIONS.items()
        if choices[key] not in (None, [], ())
    }
    for field in {"ladder", "severity"} & set(fields):
        fields[field] = [size.strip() for size in fields[field].split(",")]
    return override(_suite(choices), fields, choices["seed"])


def _suite(choices: Mapping[str, Any]) -> Suite:
    """Return the suite that the command line names."""
    from robustbench_med.bench.suite import find_suite

    studies = studies_of(choices)
    if not studies:
        return find_suite(choices["suite"], others=(STUDIES,))
    from robustbench_med.studies.study import suite_of

    return suite_of(studies)


def studies_of(choices: Mapping[str, Any]) -> list[Study]:
    """Return the studies that the command line names; none for another suite.

    Raises:
        UnknownNameError: there is no such study.
        SpecError: a study is named with another suite.
    """
    names = tuple(choices.get("study") or ())
    if choices["suite"] != STUDIES:
        if names:
            raise SpecError(f"--study: expected the suite {STUDIES}, got {choices['suite']}")
        return []
    from robustbench_med.studies.study import find_studies

    return find_studies(names)


def titles_of(choices: Mapping[str, Any]) -> dict[str, str]:
    """Return the name that --name gives to the user's own model, by the text of its --victim.

    Raises:
        SpecError: the name is empty, or there is not exactly one model of the user's own.
    """
    from robustbench_med import registry
    from robustbench_med.printable import plain

    name = choices.get("name")
    if name is None:
        return {}
    own = [victim for victim in choices["victim"] or () if registry.is_own(victim)]
    if len(own) != 1 or not plain(name):
        wrong = repr(name) if not plain(name) else f"{len(own)} such models"
        raise SpecError(
            "expected --name NAME with one --victim that is a model of your own, got "
            f"{wrong}: shipped models have names"
        )
    return {own[0]: plain(name)}


def print_kept_names(planned: list[ResolvedCase], folder: Path, console: Console) -> None:
    """Print under which other name the finished cases of a plan stand in their records."""
    from robustbench_med.bench import store

    titles = [
        store.read(folder / resolved.case.id).record.model_card.title
        for resolved in planned
        if resolved.model.named and store.finished(folder, resolved.case.id)
    ]
    kept = [title for title in titles if title != planned[0].model.title]
    if kept:
        line = f"finished under another name, {kept[0]}: {len(kept)}; --force runs them again"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def limited_requests(most: int | None, executor: str | None) -> Iterator[None]:
    """Cap the requests to models behind an address, of this process and those it starts together.

    Raises:
        SpecError: processes on other machines would not be counted.
    """
    if most is None:
        yield
        return
    if executor == "dask":
        raise SpecError(
            "expected --max-requests with workers of this machine, got --executor dask: state "
            "max_requests=N behind the address, which each worker counts by itself"
        )
    before = {key: os.environ.get(key) for key in (REQUESTS, REQUESTS_OF_RUN)}
    with tempfile.TemporaryDirectory(prefix="robustbench_med_") as folder:
        os.environ |= {REQUESTS: str(most), REQUESTS_OF_RUN: folder}
        try:
            yield
        finally:
            for key, value in before.items():
                os.environ.pop(key)
                os.environ |= {} if value is None else {key: value}


def title_of(folder: Path) -> str:
    """Return the title of a page of records: that of their shipped suite, if there is one."""
    from robustbench_med.bench import suite

    if folder.resolve().name != STUDIES:
        return suite.title_of(folder)
    from robustbench_med.studies.study import TITLE

    return TITLE


def command_of(choices: Mapping[str, Any]) -> str:
    """Return the command that runs the same suite again; the runner adds the id of a case."""
    words = ["python", "-m", "robustbench_med", "run", choices["suite"]]
    for key in ("data", "study", *GRID_OPTIONS, "seed", "name"):
        value = choices.get(key)
        flag = f"-{key}" if len(key) == 1 else f"--{key.replace('_', '-')}"
        for item in value if isinstance(value, list | tuple) else [value]:
            words += [] if item is None else [flag, str(item)]
    if choices.get("save_images"):
        words.append("--save-images")
    return shlex.join(words)
