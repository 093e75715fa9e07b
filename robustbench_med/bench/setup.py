"""Setup: the victim, images and clean outputs that several cases share, prepared once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from robustbench_med.bench.batch_check import depends_on_batch
from robustbench_med.bench.case import Case
from robustbench_med.bench.defense_spec import apply_defense, at
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.sample_metrics import UnattackedImages
from robustbench_med.bench.transfer import Surrogate, load_surrogate
from robustbench_med.cards import ModelCard
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.defense import Certified, CertifiedMasks, Defended
from robustbench_med.errors import ChecksumError, InvalidOutputError
from robustbench_med.models.load import load_victim
from robustbench_med.models.operating_point import undecided, youden
from robustbench_med.objectives.decide import answer_of
from robustbench_med.rng import Draws, seeded
from robustbench_med.stored_images import (
    in_order,
    joined,
    largest,
    select_images,
    shards,
    sizes_differ,
)
from robustbench_med.types import AnyImages, Batch, Images
from robustbench_med.victim import Victim, frozen, looks_like_probabilities

_CHEAP = 32 * 2**20  # most bytes of clean answers that are sent to other workers
_UNATTACKED = 512  # a detector is scored on at most so many clean images that are not attacked


@dataclass(frozen=True)
class AttackSetup:
    """A victim at its operating point, the images to attack, and the clean logits on them.

    Attributes:
        batch: the images to attack, on the device.
        victim: the deployed model: the victim with its defense, at its operating point.
        card: the card of the victim.
        data: the dataset of the images.
        clean: `(n, k)` logits on `batch`, offset included; for masks the predicted classes,
            `(n, *s)` uint8.
        probabilities: whether the module returns probabilities instead of logits.
        randomized: fraction of the images whose logits differ in a second forward pass.
        depends_on_batch: fraction of a few images whose output alone differs from that in a batch;
            if it is above 0, the victim gets one image at a time.
        surrogate: the model attacked instead of the victim, if the case names one or the attacker
            does not know the defense.
        guide: the differentiable view of a defended victim; None = the victim itself.
        undefended: the victim without its defense, at its operating point.
        suspicion: `(n,)` suspicion of the clean images; None without a detector.
        unattacked: the other clean images of the split; None without a detector.
        certified: what the defense proves about the clean images; None if it proves nothing.
        relative_forward_time: time of a forward pass with the defense, relative to one without.
        undecided: classes or findings for which validation could not choose a threshold.
        probes: the results of simple attacks on this victim (robustbench_med/bench/
            check_functions.py), which all cases on it share.
    """

    batch: Batch
    victim: Victim
    card: ModelCard
    data: Dataset
    clean: Float[Tensor, "n k"] | UInt8[Tensor, "n *s"]
    probabilities: bool
    randomized: float = 0.0
    depends_on_batch: float = 0.0
    surrogate: Surrogate | None = None
    guide: Victim | None = None
    undefended: Victim | None = None
    suspicion: Float[Tensor, " n"] | None = None
    unattacked: UnattackedImages | None = None
    certified: Certified | CertifiedMasks | None = None
    relative_forward_time: float | None = None
    undecided: tuple[str, ...] = ()
    probes: dict[object, Any] = field(default_factory=dict)


class Prepared(NamedTuple):
    """What the preparation of a victim without a defense found: the fields of `AttackSetup`."""

    clean: Tensor
    offset: Tensor | None
    probabilities: bool
    randomized: float
    depends_on_batch: float
    undecided: tuple[str, ...]


def handed_over(setup: AttackSetup) -> Prepared | None:
    """Return what another worker need not compute again; None if it cannot be sent cheaply.

    A detector is fitted anew by each worker, and the masks of many images are as large as these.
    """
    defended = setup.victim.before is not None or setup.victim.guard is not None
    defended |= setup.guide is not None or setup.certified is not None
    if defended or setup.clean.nbytes > _CHEAP:
        return None
    offset = setup.victim.offset
    return Prepared(
        setup.clean.cpu(),
        None if offset is None else offset.cpu(),
        setup.probabilities,
        setup.randomized,
        setup.depends_on_batch,
        setup.undecided,
    )


def setup_key(case: Case) -> tuple[object, ...]:
    """Cache key: cases with equal keys share one `AttackSetup`."""
    return (case.dataset, case.data_sha256, case.split, case.n, case.seed) + (
        case.victim,
        case.victim_sha256,
        case.operating_point,
        case.draws,
        case.defense,
        case.defense_version,
        *((case.defense_sha256,) if case.defense_sha256 else ()),
    )


def crafting_key(case: Case) -> tuple[object, ...]:
    """Cache key: cases with equal keys share the candidates that were crafted on the surrogate."""
    return (
        case.dataset,
        case.data_sha256,
        case.seed,
        case.surrogate,
        case.surrogate_sha256,
        case.threat,
        case.attack,
        case.attack_version,
        case.attack_sha256,
        json.dumps(case.parameters, sort_keys=True),
        case.norm,
        json.dumps(case.channels, sort_keys=True),
        case.objective,
        case.budget,
        *(() if is_adaptive(case) else (case.victim, case.victim_sha256, case.operating_point)),
        case.evaded_detector,
    )


def is_adaptive(case: Case) -> bool:
    """Whether the attacker optimises against the victim behind its own defense."""
    return case.knowledge == "adaptive"


def is_crafted_elsewhere(case: Case) -> bool:
    """Whether the candidates are crafted on another model than the deployed one.

    This is a surrogate, the undefended victim, or the victim behind another detector.
    """
    return case.surrogate is not None or not is_adaptive(case)


class SetupCache:
    """Cache of the last setup, or of its failure, for consecutive cases, and of the surrogates."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._key: tuple[object, ...] = ()
        self._last: AttackSetup | InvalidOutputError | None = None
        self._dataset = ""
        self._surrogates: dict[tuple[object, ...], Surrogate] = {}

    def of(self, planned: ResolvedCase, known: Prepared | None = None) -> AttackSetup:
        """Return the setup of a case; it is prepared unless the last case had the same.

        Args:
            planned: the case.
            known: what another worker found when it prepared the same case.
        """
        setup, case = self._prepared(planned, known), planned.case
        if not is_crafted_elsewhere(case):
            return setup
        if case.dataset != self._dataset:  # drop candidates crafted on another dataset
            self._dataset, self._surrogates = case.dataset, {}
        key = crafting_key(case)
        if key not in self._surrogates:
            if planned.surrogate is None:
                view = attacker_view(setup, planned)
                surrogate = Surrogate(view, planned.data.card, case.threat)
            else:
                surrogate = load_surrogate(planned.surrogate, case.threat, self._device)
            self._surrogates[key] = surrogate
        return replace(setup, surrogate=self._surrogates[key])

    def _prepared(self, planned: ResolvedCase, known: Prepared | None) -> AttackSetup:
        key = setup_key(planned.case)
        if key != self._key or self._last is None:
            self._last = None
            try:
                self._last = prepare_setup(planned, self._device, known)
            except InvalidOutputError as error:
                self._last = error
            self._key = key
        if isinstance(self._last, InvalidOutputError):
            raise self._last
        return self._last


def prepare_setup(
    planned: ResolvedCase, device: torch.device, known: Prepared | None = None
) -> AttackSetup:
    """Load the victim, choose its operating point on validation, and forward the clean images.

    Args:
        planned: the case to prepare.
        device: the device of all computations.
        known: what another worker found when it prepared the same case.

    Raises:
        ChecksumError, VictimError: the victim cannot be loaded or does not fit the data.
        InvalidOutputError: it returns NaN or Inf on clean images.
    """
    case, data = planned.case, planned.data
    loaded = planned.loaded or load_victim(
        planned.victim, data.card, images=partial(data.few_images, case.split)
    )
    if loaded.sha256 != case.victim_sha256:
        raise ChecksumError(
            f"{case.victim}: expected the weights the plan saw, got others: run again"
        )
    batch = data.batch(case.split, n=case.n, seed=case.seed, stored=True).to(device)
    victim = replace(loaded.victim, draws=case.draws)
    victim.module.to(device)
    masks = data.card.task == "segmentation"
    victim.check(batch.x[largest(batch.x, 2)], data.card.outputs, masks=masks)
    if sizes_differ(batch.x):
        victim.check_every_size(batch.x, data.card.outputs, masks=masks)
    if known is not None:
        return _prepared_elsewhere(victim, planned, batch, loaded.card, known)
    setup = _prepared(victim, planned, batch, loaded.card)
    if setup.depends_on_batch == 0:
        return setup
    # a deployed device gets one image at a time, so the output for a single image counts
    alone = _prepared(replace(victim, chunk=1), planned, batch, loaded.card)
    return replace(alone, depends_on_batch=setup.depends_on_batch)


def _prepared(victim: Victim, planned: ResolvedCase, batch: Batch, card: ModelCard) -> AttackSetup:
    case, data, device = planned.case, planned.data, batch.x.device
    with frozen(victim.module), seeded(*setup_key(case), "prepare"):
        victim = victim.settled(batch.x[largest(batch.x, victim.chunk)])
        bare, defended = _defended(victim, planned, device)
        victim = defended.judge
        masks = data.card.task == "segmentation"
        size = tuple(batch.y.shape[1:]) if masks else None
        (clean, suspicion), (second, _) = (_answers(victim, batch.x, size) for _ in range(2))
        few = select_images(batch.x, largest(batch.x, victim.chunk)) if masks else batch.x
        shown = victim.logits(few) if masks else clean
        unattacked = None if suspicion is None else _unattacked(victim, case, data, batch)
        certified = None
        if defended.certify is not None:
            draws = Draws.of(case.seed, map(str, batch.ids), device=device).fork("certify")
            certified = _certified(defended.certify, bare, batch.x, draws)
        relative = None if case.defense == "none" else _relative_time(victim, bare, batch.x)
        alone = 0.0 if victim.draws > 1 else depends_on_batch(victim, few, shown)
    raw = shown if victim.offset is None else shown - victim.offset.to(shown)
    return AttackSetup(
        batch,
        victim,
        card,
        data,
        clean,
        probabilities=_probabilities(victim, raw, data),
        randomized=float((second != clean).flatten(1).any(1).float().mean()),
        depends_on_batch=alone,
        guide=defended.guide,
        undefended=bare,
        suspicion=suspicion,
        unattacked=unattacked,
        certified=certified,
        relative_forward_time=relative,
        undecided=undecided(data.batch("val", stored=True).y, data.card)
        if case.operating_point == "youden"
        else (),
    )


def _prepared_elsewhere(
    victim: Victim, planned: ResolvedCase, batch: Batch, card: ModelCard, known: Prepared
) -> AttackSetup:
    """Return the setup of a victim without a defense that another worker has prepared."""
    device = batch.x.device
    if known.depends_on_batch > 0:
        victim = replace(victim, chunk=1)
    with frozen(victim.module), seeded(*setup_key(planned.case), "prepare"):
        victim = victim.settled(batch.x[largest(batch.x, victim.chunk)])
    victim = replace(victim, offset=None if known.offset is None else known.offset.to(device))
    return AttackSetup(
        batch,
        victim,
        card,
        planned.data,
        known.clean.to(device),
        probabilities=known.probabilities,
        randomized=known.randomized,
        depends_on_batch=known.depends_on_batch,
        undefended=victim,
        undecided=known.undecided,
    )


def _defended(
    victim: Victim, planned: ResolvedCase, device: torch.device
) -> tuple[Victim, Defended]:
    """Return the victim without and with the case's defense, each at its operating point.

    A transform changes the images, so the threshold is chosen again. A detector is fitted to the
    victim's decisions, so the threshold comes first.
    """
    case, data, defense = planned.case, planned.data, planned.defense
    bare = _deployed(victim, case, data, device)
    moves = defense.card is not None and not defense.guards
    defended = apply_defense(
        victim if moves else bare, defense, data, device, split=case.split, seed=case.seed
    )
    if not moves:
        return bare, defended
    return bare, at(defended, _deployed(defended.judge, case, data, device).offset)


def _certified(
    certify: Callable[[Victim, Images, Draws], Certified | CertifiedMasks],
    bare: Victim,
    x: AnyImages,
    draws: Draws,
) -> Certified | CertifiedMasks:
    """Return the certificates of all images, computed shard by shard."""
    rows = torch.arange(len(x), device=draws.keys.device)
    parts = shards(rows, x)
    pieces = [certify(bare, x[part], draws.select(part)) for part in parts]
    if isinstance(pieces[0], CertifiedMasks):
        label = in_order([piece.label for piece in pieces], parts)
        return pieces[0]._replace(label=label)
    return Certified(*(in_order(values, parts) for values in zip(*pieces, strict=True)))


def _probabilities(victim: Victim, raw: Tensor, data: Dataset) -> bool:
    """Whether the module returns probabilities but they are read as logits."""
    reading = victim.reading
    if victim.vote:  # shares of votes, which nobody differentiates
        return False
    if reading.link != "identity" or reading.certain:
        return False
    alone = reading.width is not None and (raw.shape[1] == 1 or data.card.task == "multi_label")
    return looks_like_probabilities(raw, span=0.0 if alone else 0.5)


def attacker_view(setup: AttackSetup, planned: ResolvedCase) -> Victim:
    """Return the model that an oblivious attacker optimises against.

    It is the undefended victim, or the victim behind the detector that the attacker evades instead.
    """
    if setup.undefended is None:
        raise RuntimeError("expected a prepared victim without its defense")
    evaded, case = planned.defense.evaded, planned.case
    if evaded is None:
        return setup.undefended
    with frozen(setup.undefended.module), seeded(*setup_key(case), evaded.text):
        view = apply_defense(
            setup.undefended,
            evaded,
            setup.data,
            setup.batch.x.device,
            split=case.split,
            seed=case.seed,
        )
    return view.guide or view.judge


def _deployed(victim: Victim, case: Case, data: Dataset, device: torch.device) -> Victim:
    if case.operating_point != "youden":
        return victim
    val = data.batch("val", stored=True).to(device)
    logits = victim.logits(val.x).cpu()
    return victim.at(youden(logits, val.y.cpu(), data.card))


def _answers(
    victim: Victim, x: AnyImages, size: tuple[int, ...] | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the victim's outputs for images, and their suspicion if there is a detector.

    Masks of images that keep their own sizes are filled up to `size`.
    """
    positions = torch.arange(len(x), device=x.device)
    rows = shards(positions, x, victim.chunk)
    outputs = [victim.outputs(x[part]) for part in rows]
    suspicion = [output.suspicion for output in outputs if output.suspicion is not None]
    answer = in_order([answer_of(output.logits) for output in outputs], rows)
    if size is not None:
        answer = joined([answer], size)
    return answer, in_order(suspicion, rows) if suspicion else None


def _unattacked(victim: Victim, case: Case, data: Dataset, batch: Batch) -> UnattackedImages | None:
    """Return the suspicion of clean images of the split that are not attacked."""
    every = data.batch(case.split, n=len(batch) + _UNATTACKED, seed=case.seed, stored=True)
    rows = (~np.isin(every.ids, batch.ids)).nonzero()[0]
    if len(rows) == 0:
        return None
    _, suspicion = _answers(victim, select_images(every.x, rows).to(batch.x.device))
    if suspicion is None:
        raise RuntimeError("expected a guarded victim")
    patients = None if every.patients is None else every.patients[rows]
    return UnattackedImages(suspicion.double().cpu().numpy(), patients)


def _relative_time(victim: Victim, bare: Victim, x: AnyImages) -> float:
    """Return the time of a pass with the defense over one without, each the best of three."""
    chunk = next(iter(x.split(victim.chunk)))
    seconds = []
    for model in (victim, bare):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            model.outputs(chunk)
            if chunk.device.type == "cuda":
                torch.cuda.synchronize(chunk.device)
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
    return seconds[0] / seconds[1]
