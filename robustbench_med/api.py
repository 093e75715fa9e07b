"""The public Python face: what a person's script imports from `robustbench_med`."""

from __future__ import annotations

import inspect
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from robustbench_med import registry
from robustbench_med.bench import store
from robustbench_med.bench.columns import KEPT
from robustbench_med.bench.plan import Planned, plan
from robustbench_med.bench.prepare import Prepared, prepare
from robustbench_med.bench.record import Stored
from robustbench_med.bench.runner import device_of, run_cases
from robustbench_med.bench.suite import Suite, find_suite, narrowed
from robustbench_med.bench.walk import walk
from robustbench_med.bench.wrapped import wrapping_of
from robustbench_med.cards import Norm
from robustbench_med.datasets.dataset import Dataset, SplitName
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import BenchError, InvalidOutputError, SpecError
from robustbench_med.evaluation import Evaluation
from robustbench_med.models.load import load_victim, of_module
from robustbench_med.subject import (
    Model,
    Subject,
    as_dataset,
    cases_of,
    dataset_of,
    in_place,
    victim_of,
)
from robustbench_med.types import Batch, Images, Truth
from robustbench_med.victim import InputContract

__all__ = ["attack", "defend", "evaluate", "load_dataset", "load_model", "run_suite"]

Radii = float | str | Sequence[float | str]  # in [0,1] image units; "2/255" and "1/255,2/255" too
Data = str | Path | Dataset


@dataclass(frozen=True)
class Attacked:
    """What an attack left of a batch, on the CPU.

    Attributes:
        x: `(b, c, *s)` clean images in [0,1].
        z: `(b, c, *s)` the images after the attack; the clean one where it was not attacked.
        y: their truth, see Batch.
        ids: `(b,)` sample ids.
        attacked: `(b,)` the goal was not reached by the clean image already.
        broken: `(b,)` the goal is reached on `z`, at the victim's operating point.
        clean: `(b, k)` logits of `x`, operating point included; of masks the classes called.
        answer: the same of `z`.
    """

    x: Images
    z: Images
    y: Truth
    ids: NDArray[np.character]
    attacked: Bool[Tensor, " b"]
    broken: Bool[Tensor, " b"]
    clean: Tensor
    answer: Tensor


@dataclass(frozen=True)
class SuiteRun:
    """What a suite came to.

    Attributes:
        records: of all its cases that have one, in the order of the suite.
        not_scored: (case, reason) of those without.
        folder: where the records lie.
    """

    records: list[Stored]
    not_scored: list[tuple[str, str]]
    folder: Path


def load_model(
    model: str | Path | nn.Module,
    *,
    dataset: Data | None = None,
    data: Path | None = None,
    name: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    contract: InputContract | None = None,
    device: str = "cpu",
) -> Model:
    """Return a model ready for images in [0,1].

    Args:
        model: a name that `list models` prints, a spec as `--victim` takes it
            ("timm:resnet18(weights='w.safetensors')", "model.py:make(width=8)", which executes that
            file), or a torch module.
        dataset: what it is for: a name, an `.npz` file or a Dataset; says channels, size and
            classes of a model of one's own. A shipped model has its own.
        data: folder with the files of named datasets.
        name: what records call a module; its class unless given.
        mean: what a module is normalised with, a number a channel, in [0,1] units; unless given it
            is shown the images as they are.
        std: likewise.
        contract: of a module, in place of the one made of `dataset`, `mean` and `std`.
        device: "cpu", "cuda", "cuda:1", or "auto".

    Raises:
        UnknownNameError, VictimError, ChecksumError, DataError: there is none, or it does not fit.
        SpecError: a model of one's own without a dataset.
    """
    where = device_of(device)
    shipped = isinstance(model, str) and not registry.is_own(model)
    if shipped and dataset is None:
        card = registry.find("datasets", registry.find("models", str(model)).dataset)
    elif dataset is None:
        raise SpecError(
            "expected dataset=... with a model of your own, got none: it says channels, size and "
            "classes"
        )
    else:
        card = dataset_of(dataset, folder=data)[1].card
    if isinstance(model, nn.Module):
        loaded = of_module(model, card, name=name, mean=mean, std=std, contract=contract)
    elif contract is not None:
        raise SpecError(f"expected a contract with a torch module alone, got one with {model}")
    else:
        victim_of(model, card, name=name, mean=mean, std=std)  # refuses what is a module's alone
        loaded = load_victim(str(model), card)
        loaded.victim.module.eval()
    loaded.victim.module.to(where)
    return Model(loaded.card.name, loaded.card, loaded.sha256, loaded.victim)


def attack(
    model: Subject,
    data: Data | Batch,
    spec: str,
    *,
    eps: float | str | None = None,
    norm: Norm = "linf",
    objective: str = "untargeted",
    n: int | None = None,
    split: SplitName = "test",
    seed: int = 0,
    defense: str = "none",
    knowledge: str = "adaptive",
    device: str = "auto",
    **grid: object,
) -> Attacked:
    """Return the images of a dataset or a batch after an attack, and what broke.

    They are those that a record with the same choices and this one radius is scored on.

    Args:
        model: a name, a spec, a torch module, or what `load_model` or `defend` returned.
        data: a name, an `.npz` file, a Dataset, or a Batch, whose victim decides by argmax.
        spec: of the attack, e.g. "pgd(steps=40)" or "pgd(eps=2/255)".
        eps: the radius, where the spec names none.
        norm: "linf", "l2", "l1" or "l0".
        objective: what the attacker wants.
        n: images drawn from the split; None = all.
        split: of the dataset.
        seed: of everything random.
        defense: wraps the model.
        knowledge: of the defense, see `evaluate`.
        device: "cpu", "cuda", "cuda:1", or "auto".
        grid: as in `evaluate`.

    Raises:
        BenchError: a choice that is wrong, or a model that does not fit the data.
    """
    if isinstance(data, Batch):
        data = as_dataset(data, model)
        grid = {"operating_point": "argmax"} | grid
    choices = _choices(eps, norm, objective, n, split, knowledge, grid)
    with in_place(model):
        planned = _planned(model, data, [spec], choices, seed, defense)
        if len(planned) != 1 or len(planned[0].case.ladder) != 1:
            raise SpecError(f"expected one case of one radius, got {_several(planned)}")
        ready = prepare(planned[0].case, planned[0].data, device_of(device), own=planned[0].own)
        return _attacked(planned[0], ready)


def _attacked(planned: Planned, ready: Prepared) -> Attacked:
    run = walk(planned, ready, keeps=True)
    z, answer, broken = ready.batch.x.clone(), ready.clean.clone(), ~run.attacked
    z[run.attacked], answer[run.attacked] = run.rungs[KEPT][-1], run.rungs["answer"][-1]
    broken[run.attacked] = run.rungs["broken"][-1]
    return Attacked(
        x=ready.batch.x.cpu(),
        z=z.cpu(),
        y=ready.batch.y.cpu(),
        ids=ready.batch.ids,
        attacked=run.aimed.cpu(),
        broken=(broken & run.aimed).cpu(),
        clean=ready.clean.cpu(),
        answer=answer.cpu(),
    )


def defend(
    model: Subject,
    spec: str,
    dataset: Data,
    *,
    data: Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Model:
    """Return a model behind a defense that wraps it.

    Args:
        model: a name, a spec, a torch module, or what `load_model` returned.
        spec: of the defense, e.g. "jpeg(quality=50)" or "mahalanobis(fpr=0.05)".
        dataset: a detector is fitted on its training and validation images.
        data: folder with the files of named datasets.
        seed: of what is random in fitting.
        device: "cpu", "cuda", "cuda:1", or "auto".

    Raises:
        SpecError: no defense, one that retrains a model (the message names the command), or one
            that is not for such data.
        BenchError: as `load_model`.
    """
    name, found = dataset_of(dataset, folder=data)
    wrapping = wrapping_of(spec, found.card)
    if wrapping.card is None:
        raise SpecError("expected a defense, got none")
    loaded = model if isinstance(model, Model) else load_model(model, dataset=found)
    if loaded.defense != "none":
        raise SpecError(f"expected a model without a defense, got one behind {loaded.defense}")
    choices = _choices("2/255", "linf", "untargeted", 1, "val", "adaptive", {})
    choices["operating_point"] = "argmax"
    planned = _planned(loaded, found, ["noise"], choices, seed, spec)
    ready = prepare(planned[0].case, found, device_of(device), own=planned[0].own)
    return Model(
        name=loaded.name,
        card=loaded.card,
        sha256=loaded.sha256,
        victim=ready.victim,
        guide=ready.guide,
        defense=wrapping.text,
        plain=ready.bare,
    )


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
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    folder: Path | None = None,
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
        results: folder of records; those finished there are not computed again. None keeps none.
        device: "cpu", "cuda", "cuda:1", or "auto".
        jobs: processes that share the cores.
        name: of a torch module, see `load_model`.
        mean: of a torch module.
        std: of a torch module.
        folder: with the files of named datasets.
        grid: other fields of a suite's grid: operating_point="argmax", channels=["T1"],
            surrogates=["chest_vgg"], draws=8, guide="bfloat16", budget="mean_norm", fit=64.

    Raises:
        InvalidOutputError: the model returned NaN or Inf.
        BenchError: a choice that is wrong, or a case that could not be scored.
    """
    specs = [attacks] if isinstance(attacks, str) else list(attacks)
    choices = _choices(eps, norm, objective, n, split, knowledge, grid)
    with in_place(model), tempfile.TemporaryDirectory() as passing:
        planned = _planned(
            model,
            data,
            specs,
            choices,
            seed,
            defense,
            folder=folder,
            name=name,
            mean=mean,
            std=std,
        )
        home = Path(passing if results is None else results)
        store.check_writable(home)
        failed = run_cases(
            planned,
            home,
            console=Console(quiet=True),
            command=_command(model, data, specs, choices, seed, defense),
            examples=0 if results is None else 4,
            device=device,
            jobs=jobs,
        )
        if failed:
            raise BenchError("not scored: {}: {}".format(*failed[0]))
        found = [store.read(home / one.case.id) for one in planned]
    for one in found:
        if one.record.status == "invalid":
            raise InvalidOutputError(f"{one.record.case.label}: {one.record.reason}")
    return Evaluation(found if results is not None else [one._replace(folder="") for one in found])


def run_suite(
    suite: str | Path,
    *,
    data: Path | None = None,
    results: str | Path = "results/local",
    seed: int | None = None,
    device: str = "auto",
    jobs: int | None = 1,
    force: bool = False,
    **grid: object,
) -> SuiteRun:
    """Run a suite as the command `run` does, into the same folder, and return its records.

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
    chosen = narrowed(find_suite(str(suite)), grid, seed)
    home = Path(results) / chosen.name
    store.check_writable(home)
    planned, broken = plan(chosen, data=data)
    if broken and not planned:
        raise broken[0].error
    options = {**({} if seed is None else {"seed": seed}), **grid}
    inside = "".join(f", {key}={value!r}" for key, value in options.items())
    failed = run_cases(
        planned,
        home,
        console=Console(quiet=True),
        command=_python(f"run_suite({str(suite)!r}{inside})"),
        force=force,
        device=device,
        jobs=jobs,
    )
    lost = [(one.label, str(one.error)) for one in broken] + failed
    kept, _ = store.read_all(home, only={one.case.id for one in planned})
    by_id = {one.record.case_id: one for one in kept}
    ordered = [by_id[one.case.id] for one in planned if one.case.id in by_id]
    return SuiteRun(ordered, lost, home)


def _choices(
    eps: Radii | None,
    norm: str,
    objective: str,
    n: int | None,
    split: str,
    knowledge: str,
    grid: dict[str, object],
) -> dict[str, Any]:
    """Return the fields of a grid that say how a model is attacked."""
    ladder: object = eps.split(",") if isinstance(eps, str) else eps
    fields = {
        "norm": norm,
        "objective": objective,
        "n": n,
        "split": split,
        "knowledge": [knowledge],
        "ladder": () if ladder is None else ladder,
    }
    return fields | grid


def _planned(
    model: Subject,
    data: Data,
    attacks: Sequence[str],
    choices: dict[str, Any],
    seed: int,
    defense: str,
    *,
    folder: Path | None = None,
    name: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> list[Planned]:
    """Return the cases of one model on one dataset."""
    if isinstance(model, Model) and model.defense != "none":
        if defense != "none":
            raise SpecError(f"expected one defense, got {defense} before {model.defense}")
        defense = model.defense
    called, dataset = dataset_of(data, folder=folder)
    victim, own = victim_of(model, dataset.card, name=name, mean=mean, std=std)
    grid = {
        "datasets": [called],
        "victims": [victim],
        "attacks": list(attacks),
        "defenses": [defense],
        **choices,
    }
    values = {"name": "asked", "title": "Asked from Python", "seed": seed, "grids": [grid]}
    suite = registry.validate(Suite, values, "asked")
    planned = cases_of(suite, dataset, own, folder=folder)
    if len({one.case.victim for one in planned}) != 1:
        raise SpecError(f"expected one model, got {victim!r}, which stands for several")
    return planned


def _several(planned: list[Planned]) -> str:
    radii = sum(len(one.case.ladder) for one in planned)
    return f"{len(planned)} cases of {radii} radii"


def _command(
    model: Subject,
    data: Data,
    attacks: Sequence[str],
    choices: dict[str, Any],
    seed: int,
    defense: str,
) -> str:
    """Return the command that computes these cases again; in words what only the caller has."""

    def shown(value: object) -> str:
        return repr(str(value)) if isinstance(value, str | Path) else f"<{type(value).__name__}>"

    named = {**choices, "eps": choices["ladder"], "knowledge": choices["knowledge"][0]}
    named |= {"seed": seed, "defense": defense}
    usual = {key: one.default for key, one in inspect.signature(evaluate).parameters.items()}
    said = {
        key: value
        for key, value in named.items()
        if key != "ladder" and value not in (usual.get(key, inspect.Parameter.empty), ())
    }
    options = "".join(f", {key}={value!r}" for key, value in said.items())
    inside = f"{shown(model)}, {shown(data)}, {list(attacks)!r}"
    return _python(f"evaluate({inside}{options})")


def _python(call: str) -> str:
    # the runner adds a case's id: behind # it is a comment of the shell
    plain = call if '"' in call else call.replace("'", '"')  # quotes that need no escape
    return f"python -c {shlex.quote(f'from robustbench_med import *; {plain}')}  #"
