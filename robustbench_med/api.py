"""The public Python face: what a person's script imports from `robustbench_med`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from robustbench_med.asked import Radii, asked, python
from robustbench_med.attacked import Attacked, attack
from robustbench_med.bench import store
from robustbench_med.bench.defense_spec import resolve_defense
from robustbench_med.bench.failure import Failure
from robustbench_med.bench.plan import plan
from robustbench_med.bench.publish import publish
from robustbench_med.bench.record import Stored
from robustbench_med.bench.runner import device_of, run_cases
from robustbench_med.bench.setup import prepare_setup
from robustbench_med.bench.suite import find_suite, override, title_of
from robustbench_med.cards import Norm
from robustbench_med.contract import InputContract
from robustbench_med.datasets.dataset import SplitName
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import BenchError, InvalidOutputError, SpecError
from robustbench_med.evaluation import Evaluation
from robustbench_med.subject import (
    Data,
    Model,
    Subject,
    as_usual,
    face,
    in_place,
    load_model,
    named,
)

__all__ = [
    "Attacked",
    "Evaluation",
    "InputContract",
    "Model",
    "SuiteRun",
    "attack",
    "defend",
    "evaluate",
    "load_dataset",
    "load_model",
    "run_suite",
]


@dataclass(frozen=True)
class SuiteRun:
    """What a suite came to.

    Attributes:
        records: of all its cases that have one, in the order of the suite.
        not_scored: the failures, each with its label, its reason and, where known, its case.
        folder: where the records lie.
    """

    records: list[Stored] = field(repr=False)
    not_scored: list[Failure]
    folder: Path


@face
def defend(
    model: Subject,
    spec: str,
    dataset: Data,
    *,
    folder: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Model:
    """Return a model behind a defense that wraps it.

    Args:
        model: a name, a spec, a torch module, or what `load_model` returned.
        spec: of the defense, e.g. "jpeg(quality=50)" or "mahalanobis(fpr=0.05)".
        dataset: a detector is fitted on its training and validation images.
        folder: with the files of named datasets.
        seed: of what is random in fitting.
        device: "cpu", "cuda", "cuda:1", or "auto"; where the model lies from then on.

    Raises:
        SpecError: no defense, one that retrains a model (the message names the command), or one
            that is not for such data.
        BenchError: as `load_model`.
    """
    _, found = named(dataset, folder=folder)
    wrapping = resolve_defense(spec, found.card)
    if wrapping.card is None:
        raise SpecError("expected a defense, got none")
    loaded = model if isinstance(model, Model) else load_model(model, dataset=found)
    if loaded.defense != "none":
        raise SpecError(f"expected a model without a defense, got one behind {loaded.defense}")
    # no attack is run: of its case, a model and what it is prepared with are wanted
    fields: dict[str, Any] = {"n": 1, "operating_point": "argmax"}
    wanted = asked(loaded, found, "noise", eps=1.0, seed=seed, defense=spec, **fields)
    planned = wanted.planned()
    ready = prepare_setup(planned[0].case, found, device_of(device), own=planned[0].own)
    return Model(
        name=loaded.name,
        card=loaded.card,
        sha256=loaded.sha256,
        victim=ready.victim,
        guide=ready.guide,
        defense=wrapping.text,
        plain=ready.bare,
    )


@face
def evaluate(
    model: Subject,
    data: Data,
    attacks: str | Sequence[str] = "worst_case",
    *,
    eps: Radii | None = None,
    norm: Norm = "linf",
    n: int | None = None,
    split: SplitName = "test",
    seed: int = 0,
    defense: str = "none",
    knowledge: str = "adaptive",
    objective: str = "untargeted",
    results: str | Path | None = None,
    device: str = "auto",
    jobs: int = 1,
    name: str | None = None,
    mean: Any = None,  # noqa: ANN401 - numbers in any form
    std: Any = None,  # noqa: ANN401
    returns: str | None = None,
    output: Any = None,  # noqa: ANN401 - a key, a place, or several
    folder: str | Path | None = None,
    **grid: object,
) -> Evaluation:
    """Return what a model still does under attack: the records that `run` would write.

    Args:
        model: a name, a spec as `--victim` takes it, a torch module, or what `load_model` or
            `defend` returned.
        data: a name, an `.npz` file or a Dataset.
        attacks: one spec or several; a radius may stand in it, "pgd(eps=2/255)".
        eps: radii of the attacks that name none, in [0,1] image units: 0.01, "2/255", or several.
        norm: "linf", "l2", "l1" or "l0".
        n: images drawn from the split; None = all.
        split: "train", "val" or "test".
        seed: of everything random.
        defense: wraps the model, e.g. "jpeg(quality=50)".
        knowledge: of the defense: adaptive, oblivious, or the detector evaded in its place.
        objective: what the attacker wants, e.g. "targeted(target=1)".
        results: folder of records; those finished there are not computed again, and a page that
            lies there is brought up to date. None keeps none.
        device: "cpu", "cuda", "cuda:1", or "auto".
        jobs: processes that share the cores.
        name: of a torch module, see `load_model`.
        mean: of a torch module.
        std: of a torch module.
        returns: of a torch module: "logits" or "probabilities".
        output: of a torch module: which of several outputs is its answer.
        folder: with the files of named datasets.
        grid: other fields of a suite's grid: operating_point="argmax", channels=["T1"],
            surrogates=["chest_vgg"], draws=8, guide="bfloat16", budget="mean_norm", fit=64.

    Raises:
        InvalidOutputError: the model returned NaN or Inf.
        BenchError: a choice that is wrong, or a case that could not be scored.
    """
    wanted = asked(
        model,
        data,
        attacks,
        eps=eps,
        seed=seed,
        defense=defense,
        knowledge=knowledge,
        norm=norm,
        objective=objective,
        n=n,
        split=split,
        **grid,
    )
    with in_place(model), tempfile.TemporaryDirectory() as passing:
        stated = {"mean": mean, "std": std, "returns": returns, "output": output}
        planned = wanted.planned(folder=folder, name=name, **stated)
        home = Path(passing if results is None else results)
        store.check_writable(home)
        failed = run_cases(
            planned,
            home,
            console=Console(quiet=True),
            command=wanted.command,
            examples=0 if results is None else 4,
            device=device,
            jobs=jobs,
        )
        if (home / "leaderboard.html").exists():  # it holds all records of its folder
            publish(home, title_of(home), planned=planned, failures=failed)
        if failed:
            raise BenchError(f"not scored: {failed[0]}")
        found = [store.read(home / one.case.id) for one in planned]
    for one in found:
        if one.record.status == "invalid":
            raise InvalidOutputError(f"{one.record.case.label}: {one.record.reason}")
    return Evaluation(found if results is not None else [one._replace(folder="") for one in found])


@as_usual()
def run_suite(
    suite: str | Path,
    *,
    data: str | Path | None = None,
    results: str | Path = "results/local",
    seed: int | None = None,
    device: str = "auto",
    jobs: int | None = 1,
    force: bool = False,
    **grid: object,
) -> SuiteRun:
    """Run a suite as the command `run` does, into the same folder, and return its records.

    The page, the CSV and the Markdown file of that folder hold all its records afterwards, those of
    earlier runs too.

    Args:
        suite: a name that `list suites` prints, or a TOML file.
        data: folder with the files of real datasets.
        results: its records lie in a folder of the suite's name below; those finished there are not
            computed again.
        seed: in place of the suite's.
        device: "cpu", "cuda", "cuda:1", or "auto".
        jobs: processes that share the cores; None = as many as pay on this machine.
        force: compute finished cases too.
        grid: fields in place of those of its grids: n=8, victims=["chest_vgg"], attacks=["fgsm"].

    Raises:
        UnknownNameError, SpecError: a name or parameter that is wrong; nothing is run.
        ResultsError: the folder cannot be written.
    """
    chosen = override(find_suite(str(suite)), grid, seed)
    home = Path(results) / chosen.name
    store.check_writable(home)
    planned, refused = plan(chosen, data=None if data is None else Path(data))
    if refused and not planned:
        raise refused[0].exception
    options = {**({} if seed is None else {"seed": seed}), **grid}
    inside = "".join(f", {key}={value!r}" for key, value in options.items())
    failed = run_cases(
        planned,
        home,
        console=Console(quiet=True),
        command=python(f"run_suite({str(suite)!r}{inside})"),
        force=force,
        images=chosen.save_images,
        device=device,
        jobs=jobs,
    )
    failures = refused + failed
    publish(home, chosen.title, planned=planned, failures=failures)
    kept, _ = store.read_all(home, only={one.case.id for one in planned})
    by_id = {one.record.case_id: one for one in kept}
    ordered = [by_id[one.case.id] for one in planned if one.case.id in by_id]
    return SuiteRun(ordered, failures, home)
