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

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Answers(NamedTuple):
    """A victim's softmax probabilities of clean and attacked images.

    Attributes:
        truth: `(n,)` class ids.
        clean, attacked: `(n, k)`.
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


def read_change(text: str, answers: Answers, *, seed: int = 0) -> Change:
    """Return what a reading says of clean and attacked images.

    The intervals are of the bootstrap over patients; the difference is paired.

    Args:
        text: a spec of a reading, such as `accuracy(threshold=0.5)`.
        answers: what the victim answered.
        seed: of the resamples.

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
            whole = [float(reading(scores, weights=once)[0]) for scores in answers[1:3]]
            repeats = [reading(scores, weights=weights) for scores in answers[1:3]]
    except TypeError as error:
        raise SpecError(f"{text}: {error}") from None
    before, after = (
        intervals.interval(value, repeat, n_patients=patients)
        for value, repeat in zip(whole, repeats, strict=True)
    )
    effect = intervals.interval(
        whole[1] - whole[0], repeats[1] - repeats[0], n_patients=patients, bounds=(-1.0, 1.0)
    )
    return Change(before, after, effect)


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


READINGS: dict[str, Callable[..., Floats]] = {
    reading.__name__: reading
    for reading in (accuracy, auc, fooling_of_truth, fooling_of_clean, called_as)
}
