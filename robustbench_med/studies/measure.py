"""Measure: run a published protocol and return what the victim said of each image."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustbench_med import spec
from robustbench_med.bench.defense_spec import ResolvedDefense, apply_defense, resolve_defense
from robustbench_med.datasets.dataset import Dataset, SplitName
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import SpecError
from robustbench_med.metrics.perturbation import ssim
from robustbench_med.metrics.segmentation import overlap
from robustbench_med.models.load import Loaded, load_victim
from robustbench_med.models.operating_point import youden
from robustbench_med.objectives.decide import class_masks
from robustbench_med.objectives.shapes import replaced
from robustbench_med.studies.outcome import Outcome, key_of, read_outcomes, write_outcome
from robustbench_med.studies.protocols import VERSION, run_protocol
from robustbench_med.studies.study import Published, Study
from robustbench_med.studies.target import Target
from robustbench_med.types import Batch, Images
from robustbench_med.victim import Victim, frozen


class _Setting(NamedTuple):
    measured: Published
    data: Dataset
    victim: Loaded
    attacked: Loaded
    defense: ResolvedDefense
    seed: int

    @property
    def key(self) -> str:
        """The hash of everything that the outcome depends on."""
        measured, defense = self.measured, self.defense
        splits: list[SplitName] = ["train", measured.split]
        if measured.operating_point == "youden":
            splits.append("val")
        return key_of(
            measured,
            self.victim.sha256,
            self.attacked.sha256,
            *(self.data.arrays(split).fingerprint() for split in splits),
            f"{defense.text} {defense.card.version if defense.card else 0}",
            f"{VERSION} {self.seed}",
        )


def key_today(study: Study, name: str, *, data: Path | None = None) -> str:
    """Return the key that an outcome of a measurement must have to be used; see `measure`."""
    return _setting(study, name, data).key


def measure(study: Study, name: str, results: Path, *, data: Path | None = None) -> Outcome:
    """Return the outcome of a published protocol; one that is stored already is read.

    Args:
        study: the study.
        name: id of one of its measurements.
        results: the results folder; the outcome is written into it.
        data: folder with the files of named datasets.

    Raises:
        ResultsError: the stored outcomes are damaged.
        BenchError: the dataset, the victim or the protocol cannot be used.
    """
    setting = _setting(study, name, data)
    key, measured = setting.key, setting.measured
    stored = read_outcomes(results, study.name)
    if name in stored and stored[name].key == key and stored[name].measured == measured:
        return stored[name]
    # the same images may be read in another way
    same = next((outcome for outcome in stored.values() if outcome.key == key), None)
    outcome = (
        _outcome(setting, key) if same is None else same.model_copy(update={"measured": measured})
    )
    write_outcome(outcome, results, study.name, name)
    return outcome


def _setting(study: Study, name: str, data: Path | None) -> _Setting:
    measured = study.measurements()[name]
    dataset = load_dataset(measured.dataset, data=data)
    if dataset.card.task == "multi_label":
        raise SpecError(f"{dataset.card.name}: expected labels or masks, got findings")
    victim = load_victim(measured.victim, dataset.card)
    attacked = victim
    if measured.surrogate:
        attacked = load_victim(measured.surrogate, dataset.card)
    defense = resolve_defense(measured.defense or "none", dataset.card)
    return _Setting(measured, dataset, victim, attacked, defense, study.seed)


def _outcome(setting: _Setting, key: str) -> Outcome:
    measured, data, victim = setting.measured, setting.data, setting.victim
    batch = data.batch(measured.split, n=measured.n, seed=setting.seed)
    start = time.perf_counter()
    with frozen(victim.victim.module), frozen(setting.attacked.victim.module):
        deployed = victim.victim
        if measured.operating_point == "youden":
            val = data.batch("val")
            deployed = deployed.at(youden(deployed.logits(val.x), val.y, data.card))
        if setting.defense.card is not None:
            deployed = apply_defense(
                deployed,
                setting.defense,
                data,
                batch.x.device,
                split=measured.split,
                seed=setting.seed,
            ).judge
        goal = _goal(measured, batch)
        target = Target(
            setting.attacked.victim,
            batch.x,
            batch.y if goal is None else goal,
            torch.Generator().manual_seed(setting.seed),
            lambda n: data.batch("train", n=n, seed=setting.seed),
            aimed=goal is not None,
        )
        z = _crafted(setting, target)
        clean, attacked = (_said(deployed, x, target.y, data) for x in (batch.x, z))
    change = (z - batch.x).flatten(1).abs().amax(1)
    masks = data.card.task == "segmentation"
    kind = "dice" if masks else "suspicion" if setting.defense.guards else "probability"
    columns = tuple(data.card.parts) if masks else data.card.classes
    return Outcome(
        key=key,
        measured=measured,
        weights=(victim.card.sha256, setting.attacked.card.sha256),
        kind=kind,
        columns=("suspicion",) if kind == "suspicion" else columns,
        samples=tuple(batch.ids.tolist()),
        patients=None if batch.patients is None else tuple(batch.patients.tolist()),
        truth=None if masks else tuple(batch.y.tolist()),
        clean=_rounded(clean),
        attacked=_rounded(attacked),
        linf=tuple(round(value, 6) for value in change.tolist()),
        ssim=tuple(round(value, 6) for value in ssim(z.clamp(0, 1), batch.x).tolist()),
        outside=float(((z < 0) | (z > 1)).float().mean()),
        seconds=round(time.perf_counter() - start, 2),
    )


_recent: dict[tuple[object, ...], Images] = {}  # images crafted last in this process
_KEPT = 8


def _crafted(setting: _Setting, target: Target) -> Images:
    """Return the attacked images; those made on the same model lately are not made again.

    Rows that transfer from one model to several share them, and an outcome at another threshold.
    """
    measured = setting.measured
    splits: tuple[SplitName, ...] = ("train", measured.split)
    images = (setting.data.arrays(split).fingerprint() for split in splits)
    which = (measured.n, measured.goal, setting.seed)
    key = (measured.protocol, setting.attacked.sha256, *images, *which)
    if key not in _recent:
        _recent[key] = run_protocol(measured.protocol, target)
        for oldest in list(_recent)[:-_KEPT]:
            del _recent[oldest]
    return _recent[key]


def _goal(measured: Published, batch: Batch) -> Tensor | None:
    """Return the masks that the attacker wants; None without a goal."""
    if not measured.goal:
        return None
    name, parameters = spec.parse(measured.goal)
    values: dict[str, Any] = {"mask": name, **parameters}
    try:
        return replaced(batch.y, **values)
    except (TypeError, KeyError) as error:
        raise SpecError(f"{measured.goal}: {error}") from None


def _said(victim: Victim, x: Images, y: Tensor, data: Dataset) -> Tensor:
    """Return probabilities `(n, k)`, the Dice of each region `(n, r)`, or the suspicion `(n, 1)`.

    Images of masks are forwarded chunk by chunk, and only the classes of their pixels are kept.
    """
    if data.card.task == "segmentation":
        masks = torch.cat([class_masks(victim.logits(chunk)) for chunk in x.split(victim.chunk)])
        pair = (np.asarray(masks.cpu()), np.asarray(y.cpu()))
        return torch.from_numpy(overlap(*pair, regions=data.card.parts))
    output = victim.outputs(x)
    if output.suspicion is not None:
        return output.suspicion[:, None]
    return output.logits.double().softmax(1)


def _rounded(values: Tensor) -> tuple[tuple[float, ...], ...]:
    """Return values with nine digits, so that a stored file is not half digits of noise."""
    return tuple(tuple(round(p, 9) for p in row) for row in values.double().tolist())
