"""Datasets, cases and attacks small enough to know what the bench must make of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from robustbench_med import objectives, registry
from robustbench_med.bench.attack_spec import ResolvedAttack
from robustbench_med.bench.case import Case
from robustbench_med.bench.defense_spec import ResolvedDefense
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.cards import AttackCard, DatasetCard, ModelCard
from robustbench_med.datasets.dataset import Arrays, Dataset, SplitName
from robustbench_med.models.source import ModelSource
from robustbench_med.victim import Victim

MODEL = ModelCard(name="toy_victim", title="Toy", family="toy", dataset="toy", builder="toy")
LADDER = (0.004, 0.008, 0.016, 0.032)


def card_of(x: Tensor, k: int, **fields: Any) -> DatasetCard:  # noqa: ANN401 - any field
    values: dict[str, Any] = {
        "name": "toy",
        "title": "Toy",
        "modality": "drawn",
        "task": "single_label",
        "classes": tuple(f"c{i}" for i in range(k)),
        "normal": 0,
        "channels": x.shape[1],
        "size": tuple(x.shape[2:]),
    }
    return DatasetCard.model_validate(values | fields)


def dataset_of(
    x: Tensor,
    y: Tensor,
    k: int,
    *,
    patients: list[str] | None = None,
    **fields: Any,  # noqa: ANN401
) -> Dataset:
    """Return a dataset whose every split is these images."""
    images = x[:, 0].numpy() if x.shape[1] == 1 else x.movedim(1, -1).numpy()
    ids = np.array([f"s{i:03d}" for i in range(len(x))])
    owners = None if patients is None else np.array(patients)

    def read(split: SplitName) -> Arrays:
        return Arrays(images.copy(), y.numpy().copy(), ids, owners)

    return Dataset(card_of(x, k, **fields), read)


def prepared_of(victim: Victim, data: Dataset) -> AttackSetup:
    batch = data.batch("test")
    return AttackSetup(batch, victim, MODEL, data, victim.logits(batch.x), False)


def planned_of(data: Dataset, attack: str = "pgd", **fields: Any) -> ResolvedCase:  # noqa: ANN401
    card: AttackCard = registry.find("attacks", attack)
    given = fields.pop("parameters", {})
    values: dict[str, Any] = {
        "dataset": "toy",
        "data_sha256": "0" * 64,
        "victim": "toy_victim",
        "victim_sha256": "1" * 64,
        "attack": attack,
        "attack_version": card.version,
        "parameters": {**card.parameters, **given},
        "norm": "linf",
        "ladder": LADDER,
    }
    return resolved_of(Case.model_validate(values | fields), data)


def resolved_of(case: Case, data: Dataset) -> ResolvedCase:
    """Return a case made by hand with what its texts stand for; the victim is the toy."""
    attack: AttackCard = registry.find("attacks", case.attack)
    return ResolvedCase(
        case=case,
        data=data,
        model=MODEL,
        victim=ModelSource(case.victim, card=MODEL),
        attack=ResolvedAttack(attack, case.parameters, case.ladder, trains=case.n_fit is not None),
        defense=ResolvedDefense(knowledge=case.knowledge),  # the victim has it on already
        objective=objectives.make(case.objective, data.card.task, card=data.card),
    )


@contextmanager
def small_phantoms() -> Iterator[None]:
    """Register a dozen images of noise in the place of each phantom's own."""
    with ExitStack() as stack:
        for card in registry.load("datasets").values():
            if card.synthetic:
                noise = Dataset(card, partial(_noise, card))
                stack.enter_context(registry.register("datasets", noise, replace=True))
        yield


def _noise(card: DatasetCard, split: SplitName) -> Arrays:
    rng = np.random.default_rng(get_args(SplitName).index(split))
    colour = (card.channels,) if card.channels > 1 else ()
    images = rng.integers(0, 256, (12, *card.size, *colour), dtype=np.uint8)
    findings = rng.integers(0, 2, (12, len(card.classes)))
    labels = findings if card.task == "multi_label" else np.arange(12) % len(card.classes)
    ids = np.array([f"{split}-{i}" for i in range(12)])
    return Arrays(images, labels, ids, np.array([f"p{i // 3}" for i in range(12)]))


def save_timm(path: Path, *, k: int = 2, channels: int = 1, change: float | None = None) -> str:
    """Write the weights of timm's test_resnet and return the spec of a victim with them."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = timm.create_model("test_resnet", in_chans=channels, num_classes=k)
    tensors = {key: value.contiguous() for key, value in module.state_dict().items()}
    if change is not None:
        tensors["fc.bias"] = torch.full_like(tensors["fc.bias"], change)
    save_file(tensors, path)
    return f"timm:test_resnet(weights='{path}')"


def save_npz(path: Path, *, k: int = 2, n: int = 12, side: int = 32, **changed: Any) -> Path:  # noqa: ANN401
    """Write a file of one's own: bright squares whose place is the class, two images a patient."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split in ("val", "test"):
        labels = np.arange(n) % k
        images = rng.integers(40, 120, (n, side, side), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4 : 4 + side // 4, 4 + label * side // (k + 1) :][:, : side // 4] += 100
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images, labels[:, None]
        arrays[f"{split}_patients"] = np.array([f"{split}-p{i // 2}" for i in range(n)])
    kept = {key: value for key, value in (arrays | changed).items() if value is not None}
    np.savez_compressed(path, **kept)
    return path
