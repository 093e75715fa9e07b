"""Readings: the papers' definitions of a score, computed from a victim's answers.

A reading maps scores `(n, k)` to a score of each resample `(r,)`, given the weights `(r, n)` of the
images in it. Papers count the same answers differently: at a probability of 0.5 or at the operating
point, against the truth or against the clean prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustbench_med import spec
from robustbench_med.errors import SpecError, UnknownNameError
from robustbench_med.metrics.classification import Predictions, auc_repeats
from robustbench_med.stats import Estimate, intervals
from robustbench_med.stats.patients import resampled_patients, resamples
from robustbench_med.studies.study import Published

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Answers(NamedTuple):
    """What a victim said of clean and attacked images.

    Attributes:
        truth: `(n,)` class ids; for masks, zeros.
        clean, attacked: `(n, k)` softmax probabilities, the Dice of each region, or `(n, 1)` the
            suspicion of a detector.
        patients: `(n,)` patient ids, or None where images are independent.
    """

    truth: Ints
    clean: Floats
    attacked: Floats
    patients: NDArray[np.character] | None = None


class Change(NamedTuple):
    """A score of clean images, of attacked ones, and their difference, with 95 % intervals."""

    before: Estimate
    after: Estimate
    effect: Estimate


class Repeated(NamedTuple):
    """A score of clean and of attacked images, and both on each bootstrap resample.

    Attributes:
        before, after: the score of all images.
        repeats: `(2, r)` the scores of the resamples.
        n_patients: effective number of patients behind them.
        samples: the images, by which two scores are paired.
        fixed: whether the score of clean images follows from its definition, without any doubt.
    """

    before: float
    after: float
    repeats: Floats
    n_patients: float
    samples: tuple[str, ...]
    fixed: bool = False


def repeated(text: str, answers: Answers, samples: tuple[str, ...], *, seed: int = 0) -> Repeated:
    """Return what a reading says of clean and attacked images, on all and on resamples.

    Args:
        text: a spec of a reading, such as `accuracy(threshold=0.5)`.
        answers: what the victim said.
        samples: ids of the images.
        seed: of the resamples, which are of patients.

    Raises:
        UnknownNameError: there is no such reading.
        SpecError: a parameter is wrong.
    """
    name, parameters = spec.parse(text)
    if name not in READINGS:
        raise UnknownNameError("reading", name, list(READINGS))
    reading = partial(READINGS[name], answers=answers, **parameters)
    weights = resamples(len(answers.truth), answers.patients, seed=seed)
    once, patients = np.ones((1, len(answers.truth))), resampled_patients(weights)
    try:
        # a resample may hold one class only, which has no area under the curve
        with np.errstate(invalid="ignore", divide="ignore"):
            before, after = (float(reading(scores, weights=once)[0]) for scores in answers[1:3])
            repeats = np.stack([reading(scores, weights=weights) for scores in answers[1:3]])
    except TypeError as error:
        raise SpecError(f"{text}: {error}") from None
    return Repeated(before, after, repeats, patients, samples, fixed=name in FIXED)


def change_of(r: Repeated) -> Change:
    """Return the scores before and after with intervals, and their paired difference."""
    change = _change(r.before, r.after, *r.repeats, n_patients=r.n_patients)
    exact = Estimate(value=r.before, low=r.before, high=r.before)
    return change._replace(before=exact) if r.fixed else change


def compare(first: Repeated, second: Repeated) -> Change:
    """Return the change from the first score under attack to the second.

    It is paired if both are of the same images, otherwise of independent resamples.
    """
    repeats = second.repeats[1]
    if first.samples != second.samples:
        repeats = repeats[::-1]  # in the same order, equal seeds would pair unrelated images
    patients = min(first.n_patients, second.n_patients)
    return _change(first.after, second.after, first.repeats[1], repeats, n_patients=patients)


def _change(
    before: float, after: float, befores: Floats, afters: Floats, *, n_patients: float
) -> Change:
    """Return the change between two scores from their values on the same resamples."""
    differences = afters - befores
    effect = intervals.interval(
        after - before, differences, n_patients=n_patients, bounds=(-1.0, 1.0)
    )
    if not np.nan_to_num(differences).any() and after == before:
        # no image counts otherwise than before: bounded as a share of 0 is, to both sides
        bound = intervals.interval(0.0, differences, n_patients=n_patients).high
        effect = Estimate(value=0.0, low=-bound, high=bound)
    return Change(
        intervals.interval(before, befores, n_patients=n_patients),
        intervals.interval(after, afters, n_patients=n_patients),
        effect,
    )


def _share(event: NDArray[np.bool_], weights: Floats) -> Floats:
    shares: Floats = (weights @ event) / weights.sum(1)
    return shares


def _called(scores: Floats, threshold: float | None) -> Ints:
    called: Ints = scores.argmax(1)
    if threshold is not None:
        if scores.shape[1] != 2:
            raise TypeError(f"a threshold needs two classes, got {scores.shape[1]}")
        called = (scores[:, 1] > threshold).astype(np.int64)
    return called


def accuracy(
    scores: Floats, *, answers: Answers, weights: Floats, threshold: float | None = None
) -> Floats:
    """The share of images that are called their true class.

    Args:
        scores: `(n, k)`.
        answers: hold the truth.
        weights: `(r, n)`.
        threshold: probability above which class 1 is called; None calls the likeliest class.
    """
    return _share(_called(scores, threshold) == answers.truth, weights)


def auc(scores: Floats, *, answers: Answers, weights: Floats) -> Floats:
    """The area under the ROC curve of class 1; of several classes the mean, each against the rest.

    Source: Hanley and McNeil 1982; the mean as Bortsova et al. 2021 report it.
    """
    k = scores.shape[1]
    truth = answers.truth[:, None] == np.arange(k)
    p = Predictions(truth, truth, np.ones_like(truth), scores)
    areas: Floats = np.mean([auc_repeats(p, j, weights) for j in ([1] if k == 2 else range(k))], 0)
    return areas


def fooling_of_truth(scores: Floats, *, answers: Answers, weights: Floats) -> Floats:
    """The share of images whose prediction is not the truth, also where it was wrong when clean.

    Source: Hirano, Koga, Takemoto 2020 (code of hkthirano/UAP-COVID-Net).
    """
    return _share(scores.argmax(1) != answers.truth, weights)


def fooling_of_clean(scores: Floats, *, answers: Answers, weights: Floats) -> Floats:
    """The share of images whose prediction is not that of the clean image.

    Source: Hirano, Minagi, Takemoto 2021 (code of hkthirano/MedicalAI-UAP).
    """
    return _share(scores.argmax(1) != answers.clean.argmax(1), weights)


def dice(scores: Floats, *, answers: Answers, weights: Floats, region: int | None = None) -> Floats:
    """The mean Dice over images and regions.

    Args:
        scores: `(n, k)` the Dice of each region.
        answers: unused.
        weights: `(r, n)`.
        region: index of the one region that counts; None = all.
    """
    del answers
    means: Floats = (weights @ _of_region(scores, region)) / weights.sum(1)
    return means


def iou(scores: Floats, *, answers: Answers, weights: Floats, region: int | None = None) -> Floats:
    """The mean intersection over union of images and regions: Dice / (2 - Dice) of each."""
    return dice(scores / (2 - scores), answers=answers, weights=weights, region=region)


def drawn(
    scores: Floats,
    *,
    answers: Answers,
    weights: Floats,
    region: int | None = None,
    dice: float = 0.75,
) -> Floats:
    """The share of images whose Dice with the wanted masks is at least a value.

    Args:
        scores: `(n, k)` the Dice of each region with the wanted masks.
        answers: unused.
        weights: `(r, n)`.
        region: index of the one region that counts; None = their mean.
        dice: from which Dice on a mask counts as drawn; by default as in `objectives/segmentation`.
    """
    del answers
    return _share(_of_region(scores, region) >= dice, weights)


def damaged(
    scores: Floats,
    *,
    answers: Answers,
    weights: Floats,
    region: int | None = None,
    dice: float = 0.5,
) -> Floats:
    """The share of images whose Dice with the true masks is below a value; as `drawn`."""
    del answers
    return _share(_of_region(scores, region) < dice, weights)


def _of_region(scores: Floats, region: int | None) -> Floats:
    """Return the Dice `(n,)` of one region, or of all on average."""
    if region is None:
        means: Floats = scores.mean(1)
        return means
    if not 0 <= region < scores.shape[1]:
        raise SpecError(f"expected a region in 0..{scores.shape[1] - 1}, got {region}")
    return scores[:, region]


def detection_auc(scores: Floats, *, answers: Answers, weights: Floats) -> Floats:
    """The area under the ROC curve of a detector that tells `scores` from those of clean images.

    On the clean images themselves it is one half. An image is resampled with its clean version.
    """
    both = np.concatenate([answers.clean[:, :1], scores[:, :1]])
    truth = np.repeat([False, True], len(scores))[:, None]
    p = Predictions(truth, truth, np.ones_like(truth), both)
    return auc_repeats(p, 0, np.concatenate([weights, weights], axis=1))


def called_as(scores: Floats, *, answers: Answers, weights: Floats, target: int) -> Floats:
    """The share of images that are called the target class, also where that is the truth.

    Args:
        scores: `(n, k)`.
        answers: unused.
        weights: `(r, n)`.
        target: class id.
    """
    del answers
    return _share(scores.argmax(1) == target, weights)


def missed(scores: Floats, *, answers: Answers, weights: Floats, normal: int) -> Floats:
    """The share of the images of other classes that are called normal.

    Args:
        scores: `(n, k)`.
        answers: hold the truth.
        weights: `(r, n)`.
        normal: class id of the normal images, which do not count.
    """
    ill = answers.truth != normal
    return _share(scores[ill].argmax(1) == normal, weights[:, ill])


FIXED = ("fooling_of_clean", "detection_auc")  # of clean images 0, and one half, by definition
# readings that rise where an attack succeeds; the others fall
SUCCESSES = (
    "fooling_of_truth",
    "fooling_of_clean",
    "called_as",
    "missed",
    "drawn",
    "damaged",
)


def counts_successes(measured: Published) -> bool:
    """Return whether a measurement's score rises where an attack succeeds."""
    return bool(measured.goal) or spec.parse(measured.reading).name in SUCCESSES


READINGS: dict[str, Callable[..., Floats]] = {
    reading.__name__: reading
    for reading in (
        accuracy,
        auc,
        fooling_of_truth,
        fooling_of_clean,
        called_as,
        missed,
        dice,
        iou,
        drawn,
        damaged,
        detection_auc,
    )
}
