"""The public Python API: what a script imports from `robustbench_med`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from robustbench_med.batches import checked, dataset_of, is_batch, task_of
from robustbench_med.bench import store
from robustbench_med.bench.defense_spec import resolve_defense
from robustbench_med.bench.failure import Failure
from robustbench_med.bench.measurements import CANDIDATES
from robustbench_med.bench.plan import plan
from robustbench_med.bench.publish import publish
from robustbench_med.bench.record import Stored
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.runner import run_cases
from robustbench_med.bench.setup import AttackSetup, SetupCache, prepare_setup
from robustbench_med.bench.suite import find_suite, override
from robustbench_med.bench.verified_run import run_verified
from robustbench_med.cards import Norm
from robustbench_med.contract import InputContract
from robustbench_med.datasets.dataset import SplitName
from robustbench_med.datasets.foreign import refused
from robustbench_med.datasets.load import load_dataset
from robustbench_med.devices import device_of
from robustbench_med.errors import SpecError
from robustbench_med.evaluation import Evaluation, evaluate
from robustbench_med.evaluation_request import make_request, python_command
from robustbench_med.model_handle import (
    DataLike,
    ModelHandle,
    ModelLike,
    api_function,
    default_modes,
    join_steps,
    load_model,
    resolve_dataset,
    restored_device,
)
from robustbench_med.stored_images import sizes_differ
from robustbench_med.types import Batch, Images, Truth

__all__ = [
    "AttackResult",
    "Evaluation",
    "InputContract",
    "ModelHandle",
    "SuiteRun",
    "attack",
    "defend",
    "evaluate",
    "load_dataset",
    "load_model",
    "run_suite",
]


@dataclass(frozen=True)
class AttackResult:
    """The images of a dataset or a batch after one attack at one radius, on the CPU.

    Attributes:
        x: `(b, c, *s)` clean images in [0,1].
        z: `(b, c, *s)` adversarial images; the clean image where it was not attacked.
        y: the truth, see Batch.
        ids: `(b,)` sample ids.
        attacked: `(b,)` whether the image was attacked: the clean image does not reach the goal.
        success: `(b,)` whether the goal is reached on `z`, at the victim's operating point.
        clean_output: `(b, k)` logits of `x`, operating point included; for masks the class called
            at each pixel.
        output: the same for `z`.
    """

    x: Images
    z: Images
    y: Truth
    ids: NDArray[np.character]
    attacked: Bool[Tensor, " b"]
    success: Bool[Tensor, " b"]
    clean_output: Tensor
    output: Tensor


@dataclass(frozen=True)
class SuiteRun:
    """The records of a suite.

    Attributes:
        records: one record per scored case, in the order of the suite.
        not_scored: one failure per case without a record, with its label, its reason and, where
            known, its case.
        folder: the folder of the records.
    """

    records: list[Stored] = field(repr=False)
    not_scored: list[Failure]
    folder: Path


@api_function
def attack(
    model: ModelLike,
    data: DataLike | Batch | tuple[Tensor, Tensor] | list[Tensor],
    spec: str,
    *,
    eps: float | str | None = None,
    severity: float | str | None = None,
    norm: Norm = "linf",
    objective: str = "untargeted",
    n: int | None = None,
    split: SplitName = "test",
    seed: int = 0,
    defense: str = "none",
    knowledge: str = "adaptive",
    device: str = "auto",
    preprocess: str | None = None,
    mean: Any = None,  # noqa: ANN401 - numbers in any form
    std: Any = None,  # noqa: ANN401
    returns: str | None = None,
    output: Any = None,  # noqa: ANN401 - a key, an index, or several
    folder: str | Path | None = None,
    **grid: object,
) -> AttackResult:
    """Attack the images of a dataset or a batch at one radius.

    A record with the same arguments is scored on the same adversarial images.

    Args:
        model: a name, a spec, a torch module, or what `load_model` or `defend` returned.
        data: a name, an `.npz` file, a Dataset, or a Batch. A pair of images and labels is a Batch
            too. On a batch the victim decides by argmax.
        spec: the attack, e.g. "pgd(steps=40)" or "pgd(eps=2/255)".
        eps: the radius, if the spec states none.
        severity: the severity of a shift, which takes no `eps`.
        norm: "linf", "l2", "l1" or "l0".
        objective: the attacker's goal.
        n: how many images are drawn from the split; None = all.
        split: the split of the dataset.
        seed: seed of everything random.
        defense: a defense to wrap the model in.
        knowledge: what the attacker knows about the defense, see `evaluate`.
        device: "cpu", "cuda", "cuda:1", or "auto".
        preprocess: the steps between a stored image and the model, see `load_model`.
        mean: the mean of a torch module, see `load_model`.
        std: the standard deviation of a torch module.
        returns: what a torch module returns: "logits" or "probabilities".
        output: which of several outputs of a torch module to read.
        folder: the folder with the files of real datasets.
        grid: other fields of a suite's grid, see `evaluate`.

    Raises:
        BenchError: an argument is wrong, or the model does not fit the data.
    """
    model, preprocess = join_steps(model, preprocess)
    options = {"mean": mean, "std": std, "returns": returns, "output": output}
    options["preprocess"] = preprocess
    if isinstance(data, Batch | tuple | list) and is_batch(data):
        data = dataset_of(checked(data, task=task_of(model)), model, **options)
        grid = {"operating_point": "argmax"} | grid
    if isinstance(data, Batch | tuple | list):
        raise refused(data)
    request = make_request(
        model,
        data,
        spec,
        eps=eps,
        severity=severity,
        seed=seed,
        defense=defense,
        knowledge=knowledge,
        norm=norm,
        objective=objective,
        n=n,
        split=split,
        **grid,
    )
    with restored_device(model):
        planned = request.plan_cases(folder=folder, **options)
        if len(planned) != 1 or len(planned[0].case.ladder) != 1:
            radii = sum(len(resolved.case.ladder) for resolved in planned)
            raise SpecError(f"expected one radius, got {radii}: evaluate takes several")
        return _attack_result(planned[0], SetupCache(device_of(device)).of(planned[0]))


def _attack_result(resolved: ResolvedCase, setup: AttackSetup) -> AttackResult:
    if sizes_differ(setup.batch.x):
        raise SpecError(
            "expected images of one size, which one tensor holds, got images that keep their own: "
            "evaluate takes them"
        )
    run = run_verified(resolved, setup, keeps=True)
    x = setup.batch.x[:]
    z, output, success = x.clone(), setup.clean.clone(), run.aimed
    z[run.attacked], output[run.attacked] = run.rungs[CANDIDATES][-1], run.rungs["answer"][-1]
    success[run.attacked] &= run.rungs["success"][-1]
    return AttackResult(
        x=x.cpu(),
        z=z.cpu(),
        y=setup.batch.y.cpu().long(),
        ids=setup.batch.ids,
        attacked=run.aimed.cpu(),
        success=success.cpu(),
        clean_output=setup.clean.cpu(),
        output=output.cpu(),
    )


@api_function
def defend(
    model: ModelLike,
    spec: str,
    dataset: DataLike,
    *,
    folder: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> ModelHandle:
    """Wrap a model in a defense.

    Args:
        model: a name, a spec, a torch module, or what `load_model` returned.
        spec: the defense, e.g. "jpeg(quality=50)" or "mahalanobis(fpr=0.05)".
        dataset: the data; a detector is fitted on its training and validation images.
        folder: the folder with the files of real datasets.
        seed: seed of what is random in fitting.
        device: "cpu", "cuda", "cuda:1", or "auto"; the model stays there.

    Raises:
        SpecError: the spec is not a defense or not for such data, or it retrains a model (then the
            message names the command).
        BenchError: as `load_model`.
    """
    _, loaded_data = resolve_dataset(dataset, folder=folder)
    resolved = resolve_defense(spec, loaded_data.card)
    if resolved.card is None:
        raise SpecError("expected a defense, got none")
    handle = model if isinstance(model, ModelHandle) else load_model(model, dataset=loaded_data)
    if handle.defense != "none":
        raise SpecError(f"expected a model without a defense, got one behind {handle.defense}")
    # no attack runs: the case only says how the model and its defense are set up
    fields: dict[str, Any] = {"n": 1, "operating_point": "argmax"}
    request = make_request(handle, loaded_data, "noise", eps=1.0, seed=seed, defense=spec, **fields)
    (planned,) = request.plan_cases()
    setup = prepare_setup(planned, device_of(device))
    return ModelHandle(
        name=handle.name,
        card=handle.card,
        sha256=handle.sha256,
        victim=setup.victim,
        guide=setup.guide,
        defense=resolved.text,
        undefended=setup.undefended,
    )


@default_modes()
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

    Afterwards the page, the CSV and the Markdown file of that folder show all its records, those of
    earlier runs too.

    Args:
        suite: a name that `list suites` prints, or a TOML file.
        data: the folder with the files of real datasets.
        results: the folder of results. The records are written below it, in a folder with the name
            of the suite; cases that are finished there are not computed again.
        seed: a seed that replaces the suite's.
        device: "cpu", "cuda", "cuda:1", or "auto".
        jobs: how many processes share the cores; None = as many as save time on this machine.
        force: compute finished cases again.
        grid: fields that replace those of the suite's grids: n=8, victims=["chest_vgg"],
            attacks=["fgsm"].

    Raises:
        UnknownNameError, SpecError: a name or parameter is wrong; nothing runs.
        ResultsError: the folder cannot be written.
    """
    changed = override(find_suite(str(suite)), grid, seed)
    home = Path(results) / changed.name
    store.check_writable(home)
    planned, unplanned = plan(changed, data=None if data is None else Path(data))
    if unplanned and not planned:
        raise unplanned[0].exception
    options = {**({} if seed is None else {"seed": seed}), **grid}
    arguments = "".join(f", {key}={value!r}" for key, value in options.items())
    failed = run_cases(
        planned,
        home,
        console=Console(quiet=True),
        command=python_command(f"run_suite({str(suite)!r}{arguments})"),
        force=force,
        images=changed.save_images,
        device=device,
        jobs=jobs,
    )
    failures = unplanned + failed
    publish(home, changed.title, planned=planned, failures=failures)
    case_ids = [resolved.case.id for resolved in planned]
    records, _ = store.read_all(home, only=set(case_ids))
    by_id = {stored.record.case_id: stored for stored in records}
    return SuiteRun([by_id[key] for key in case_ids if key in by_id], failures, home)
