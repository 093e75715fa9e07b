"""Attacked: the images of a dataset or a batch after one attack at one radius."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor, nn

from robustbench_med import registry
from robustbench_med.asked import asked
from robustbench_med.batches import checked, is_batch
from robustbench_med.bench.measurements import CANDIDATES
from robustbench_med.bench.plan import ResolvedCase
from robustbench_med.bench.runner import Shared, device_of
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.bench.verified_run import run_verified
from robustbench_med.cards import DatasetCard, ModelCard, Norm, Task
from robustbench_med.contract import contract_of
from robustbench_med.datasets.dataset import Arrays, Dataset, SplitName
from robustbench_med.datasets.foreign import refused
from robustbench_med.errors import MissingSplitError, SpecError
from robustbench_med.models import user_factory
from robustbench_med.models.probing import Expected, probe
from robustbench_med.subject import Data, Model, Subject, face, in_place
from robustbench_med.types import Batch, Images, Truth, images_at_once
from robustbench_med.victim import Victim, frozen


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


@face
def attack(
    model: Subject,
    data: Data | Batch | tuple[Tensor, Tensor] | list[Tensor],
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
    mean: Any = None,  # noqa: ANN401 - numbers in any form
    std: Any = None,  # noqa: ANN401
    returns: str | None = None,
    output: Any = None,  # noqa: ANN401 - a key, a place, or several
    folder: str | Path | None = None,
    **grid: object,
) -> Attacked:
    """Return the images of a dataset or a batch after an attack, and what broke.

    They are those that a record with the same choices and this one radius is scored on.

    Args:
        model: a name, a spec, a torch module, or what `load_model` or `defend` returned.
        data: a name, an `.npz` file, a Dataset, or a Batch, whose victim decides by argmax; a pair
            of images and labels is a Batch.
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
        mean: of a torch module, see `load_model`.
        std: of a torch module.
        returns: of a torch module: "logits" or "probabilities".
        output: of a torch module: which of several outputs is its answer.
        folder: with the files of named datasets.
        grid: as in `evaluate`.

    Raises:
        BenchError: a choice that is wrong, or a model that does not fit the data.
    """
    stated = {"mean": mean, "std": std, "returns": returns, "output": output}
    if isinstance(data, Batch | tuple | list) and is_batch(data):
        data = as_dataset(checked(data, task=_task_of(model)), model, **stated)
        grid = {"operating_point": "argmax"} | grid
    if isinstance(data, Batch | tuple | list):
        raise refused(data)
    wanted = asked(
        model,
        data,
        spec,
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
    with in_place(model):
        planned = wanted.planned(folder=folder, **stated)
        if len(planned) != 1 or len(planned[0].case.ladder) != 1:
            radii = sum(len(one.case.ladder) for one in planned)
            raise SpecError(f"expected one radius, got {radii}: evaluate takes several")
        return _attacked(planned[0], Shared(device_of(device)).of(planned[0]))


def _attacked(planned: ResolvedCase, ready: AttackSetup) -> Attacked:
    run = run_verified(planned, ready, keeps=True)
    z, answer, broken = ready.batch.x.clone(), ready.clean.clone(), run.aimed
    z[run.attacked], answer[run.attacked] = run.rungs[CANDIDATES][-1], run.rungs["answer"][-1]
    broken[run.attacked] &= run.rungs["broken"][-1]
    return Attacked(
        x=ready.batch.x.cpu(),
        z=z.cpu(),
        y=ready.batch.y.cpu(),
        ids=ready.batch.ids,
        attacked=run.aimed.cpu(),
        broken=broken.cpu(),
        clean=ready.clean.cpu(),
        answer=answer.cpu(),
    )


def as_dataset(batch: Batch, model: Subject, **stated: Any) -> Dataset:  # noqa: ANN401
    """Return a batch as a dataset whose test split it is.

    Raises:
        SpecError: a model by a spec of one's own: nothing says how many classes there are.
    """
    card = _card_of(batch, model, stated)
    images = batch.x.detach().cpu().numpy()
    images = images[:, 0] if card.channels == 1 else np.moveaxis(images, 1, -1).copy()
    kind = np.int16 if card.task == "segmentation" else np.int64
    labels: NDArray[Any] = batch.y.detach().cpu().numpy().astype(kind)
    arrays = Arrays(
        images.astype(np.float32),
        labels,
        np.asarray(batch.ids, dtype=np.str_),
        None if batch.patients is None else np.asarray(batch.patients, dtype=np.str_),
    )

    def read(split: SplitName) -> Arrays:
        if split != "test":
            raise MissingSplitError(f"{card.name} ({split}): expected a split, got a batch alone")
        return arrays

    return Dataset(card, read)


def _task_of(model: Subject) -> Task | None:
    """Return the task of a shipped model's data; None of another model."""
    name = model.name if isinstance(model, Model) else model
    cards = registry.load("models")
    if not isinstance(name, str) or name not in cards:
        return None
    card: DatasetCard = registry.find("datasets", cards[name].dataset)
    return card.task


def _card_of(batch: Batch, model: Subject, stated: dict[str, Any]) -> DatasetCard:
    if isinstance(model, Model):
        model = model.name if model.name in registry.load("models") else model
    if isinstance(model, str | Path):
        if registry.is_own(str(model)):
            raise SpecError(
                f"expected a dataset or a loaded model with a batch, got {model}: pass "
                "load_model(..., dataset=...)"
            )
        card: ModelCard = registry.find("models", str(model))
        found: DatasetCard = registry.find("datasets", card.dataset)
        return found
    size = tuple(batch.x.shape[2:])
    masks = batch.y.ndim > 1 and tuple(batch.y.shape[1:]) == size
    return DatasetCard(
        name="batch",
        title="A batch",
        modality="not stated",
        task="segmentation" if masks else "multi_label" if batch.y.ndim > 1 else "single_label",
        classes=tuple(
            f"class {i}" for i in range(max(_outputs(model, batch, stated, masks=masks), 2))
        ),
        channels=batch.x.shape[1],
        size=size,
        bit_depth=16,
    )


def _outputs(model: nn.Module | Model, batch: Batch, stated: dict[str, Any], *, masks: bool) -> int:
    """Return the number of logits that a model has for images like those of a batch."""
    if not isinstance(model, Model):
        contract = contract_of(batch.x.shape[1], tuple(batch.x.shape[2:]), stated)
        module = user_factory.with_gradients(model)
        victim = Victim(module, contract, chunk=images_at_once(contract.size))
        findings = batch.y.ndim > 1 and not masks
        expected = Expected((batch.y.shape[1],) if findings else (), masks, findings)
        return probe(victim, expected).reading.width or 0
    victim = model.victim
    with frozen(victim.module):
        parameter = next(victim.module.parameters(), batch.x)
        return int(victim.logits(batch.x[:2].to(parameter.device)).shape[1])
