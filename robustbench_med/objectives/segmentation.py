"""Objectives on masks: damage all regions, damage one, or replace one by another mask.

Pixels labelled -1 (outside a field of view, or 255 in a file) do not count in losses and scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from robustbench_med.cards import DatasetCard
from robustbench_med.errors import SpecError
from robustbench_med.objectives import shapes
from robustbench_med.objectives.classification import log_odds_against, two_sided
from robustbench_med.types import Logits, Output, PerSample, Rows, Verdict

DAMAGE_DICE = 0.5  # an attack that damages regions succeeds where the Dice of the image is below
TARGET_DICE = 0.75  # a target mask counts as drawn from this Dice on


class Pixels(NamedTuple):
    """The outputs and the goal at the `p` pixels of each image, one row per image.

    Attributes:
        logits: logits of at least two classes.
        reference: the class that a pixel must leave, or reach; 0 where the pixel does not count.
        counted: whether the pixel counts.
        predicted: the predicted class; the first on a tie.
        reached: whether the pixel has reached the goal; False where it does not count.
        away: whether the goal is to leave the reference (untargeted) or to reach it (targeted).
        regions: the classes of each region.
    """

    logits: Float[Tensor, "b k p"]
    reference: Int[Tensor, "b p"]
    counted: Bool[Tensor, "b p"]
    predicted: Int[Tensor, "b p"]
    reached: Bool[Tensor, "b p"]
    away: bool
    regions: Bool[Tensor, "r k"]

    @property
    def cross_entropy(self) -> Float[Tensor, "b p"]:
        """The cross-entropy of the reference; by log-odds, so confident pixels have a gradient."""
        if self.logits.shape[1] > 2:
            return functional.softplus(log_odds_against(self.logits, self.reference))
        outside, inside = self.logits.unbind(1)  # the same for two classes, without a scatter
        return functional.softplus((inside - outside) * (1 - 2 * self.reference))

    @property
    def active(self) -> Bool[Tensor, "b p"]:
        """The counted pixels that have not reached the goal; all counted pixels if all have.

        An image with every pixel wrong may not be final: its Dice stays above 0 until a region that
        is absent is predicted. Without all its pixels its gradient would be 0 and the attack would
        stop there.
        """
        missing = self.counted & ~self.reached
        return missing | (self.counted & ~missing.any(1, keepdim=True))

    def mean(self, values: Float[Tensor, "b p"]) -> PerSample:
        """Return the mean of pixel values over the pixels that count; 0 where none does."""
        return (values * self.counted).sum(1) / self.counted.sum(1).clamp_min(1)

    def gain(self, losses: Float[Tensor, "b p"]) -> PerSample:
        """Return what the attacker maximises: the mean of the losses, or minus it for a target."""
        return self.mean(losses) if self.away else -self.mean(losses)


def classes(logits: Float[Tensor, "b k *s"]) -> Int[Tensor, "b *s"]:
    """Return the class of the largest logit; the first on a tie.

    The loop is faster than `argmax`, which takes as long as a small network on an inner axis.
    """
    logits = logits.detach()
    largest, label = logits[:, 0], torch.zeros_like(logits[:, 0], dtype=torch.long)
    for k in range(1, logits.shape[1]):
        label = torch.maximum(label, (logits[:, k] > largest) * k)
        largest = torch.maximum(largest, logits[:, k])
    return label


def confusion(pixels: Pixels) -> Float[Tensor, "b k k"]:
    """Return how many counted pixels of each reference class are predicted as each class."""
    b, k, _ = pixels.logits.shape
    # pixels that do not count get cells beyond k * k, which are dropped below
    cell = pixels.reference * k + pixels.predicted + ~pixels.counted * k * k
    cell = cell + torch.arange(b, device=cell.device)[:, None] * 2 * k * k
    count = torch.bincount(cell.flatten(), minlength=b * 2 * k * k)
    return count.view(b, 2, k, k)[:, 0].to(pixels.logits.dtype)


def dice(table: Float[Tensor, "b k k"], regions: Bool[Tensor, "r k"]) -> Float[Tensor, "b r"]:
    """Return the Dice of each region; 1 where it is empty in reference and prediction alike.

    Source: Dice 1945; the rule for empty regions is that of the BraTS challenge (Bakas et al.,
    2018).

    >>> dice(torch.tensor([[[2.0, 1.0], [1.0, 4.0]]]), torch.tensor([[False, True]]))
    tensor([[0.8000]])
    """
    member = regions.to(table)
    both = torch.einsum("rj,bjk,rk->br", member, table, member)
    sizes = table.sum(2) @ member.T + table.sum(1) @ member.T
    return torch.where(sizes > 0, 2 * both / sizes.clamp_min(1), 1.0)


class Masks(ABC):
    """Base class of the objectives on masks.

    Loss: the mean cross-entropy of the reference over the counted pixels; minus it for a target.
    There are no margins: a mask can be wrong in too many ways to differentiate each.
    """

    def __init__(self, card: DatasetCard) -> None:
        self.k = len(card.classes)
        ids = torch.arange(self.k)
        self.regions = torch.stack([torch.isin(ids, torch.tensor(p)) for p in card.parts.values()])

    @abstractmethod
    def pixels(self, output: Output, y: Int[Tensor, "b *s"]) -> Pixels:
        """Return the pixels of logits `(b, k, *s)` against masks `y`."""

    @abstractmethod
    def verdict(self, pixels: Pixels, loss: PerSample) -> Verdict:
        """Return the verdict on the pixels, with this loss."""

    def __call__(self, output: Output, y: Int[Tensor, "b *s"]) -> Verdict:
        """Return the verdict on logits `(b, k, *s)` against masks `y`."""
        pixels = self.pixels(output, y)
        return self.verdict(pixels, pixels.gain(pixels.cross_entropy))

    def _pixels(
        self,
        logits: Logits,
        y: Tensor,
        reference: Tensor,
        regions: Tensor,
        *,
        away: bool,
        predicted: Tensor | None = None,
    ) -> Pixels:
        flat, counted = logits.flatten(2), (y >= 0).flatten(1)
        reference = reference.flatten(1).clamp_min(0)
        predicted = classes(flat) if predicted is None else predicted.flatten(1)
        reached = ((predicted != reference) if away else (predicted == reference)) & counted
        return Pixels(flat, reference, counted, predicted, reached, away, regions.to(flat.device))

    def margins(self, output: Output, y: Int[Tensor, "b *s"]) -> Tensor:  # noqa: ARG002
        """Raise SpecError: masks have no margins."""
        raise _no_margins()

    def dlr_scale(self, output: Output, *, towards: bool = False) -> Tensor:  # noqa: ARG002
        """Raise SpecError: masks have no margins."""
        raise _no_margins()

    def applies(self, y: Int[Tensor, "b *s"]) -> Bool[Tensor, " b"]:
        """Return the images with at least one pixel that counts."""
        return (y >= 0).flatten(1).any(1)

    def select(self, rows: Rows) -> Masks:  # noqa: ARG002 - the same for every sample
        """Return the objective itself: it is the same for all rows."""
        return self

    def bind(self, y: Int[Tensor, "b *s"]) -> Masks:  # noqa: ARG002 - nothing to prepare
        """Return the objective itself: nothing depends on the truths."""
        return self


def _no_margins() -> SpecError:
    return SpecError("expected an attack or loss for masks, got one that needs margins of classes")


class Damage(Masks):
    """Damage every region.

    Harm: how far the image's Dice, the mean over its regions, is below 0.5.
    Final: the Dice is 0.
    """

    def pixels(self, output: Output, y: Int[Tensor, "b *s"]) -> Pixels:
        """Return the pixels; the reference is the truth."""
        return self._pixels(two_sided(output.logits), y, y, self.regions, away=True)

    def verdict(self, pixels: Pixels, loss: PerSample) -> Verdict:
        """Return the verdict on the pixels, with this loss."""
        score = dice(confusion(pixels), pixels.regions).mean(1)
        return Verdict(loss, DAMAGE_DICE - score, score == 0)


class OneRegion(Damage):
    """Damage one region; the others do not matter.

    Each pixel has two logits: the largest of the classes inside the region, and of those outside.
    Harm: how far the region's Dice is below 0.5.
    """

    def __init__(self, card: DatasetCard, region: str) -> None:
        super().__init__(card)
        if region not in card.parts:
            raise SpecError(f"expected a region in {', '.join(card.parts)}, got {region!r}")
        self.inside = self.regions[list(card.parts).index(region)]
        if bool(self.inside.all()):
            raise SpecError(f"expected a region that leaves some class out, got {region!r}")

    def pixels(self, output: Output, y: Int[Tensor, "b *s"]) -> Pixels:
        """Return the pixels with two classes: outside and inside the region."""
        logits, inside = two_sided(output.logits), self.inside.long().to(y.device)
        sides: tuple[list[Tensor], list[Tensor]] = [], []
        for is_inside, logit in zip(self.inside.tolist(), logits.unbind(1), strict=True):
            sides[is_inside].append(logit)
        pair = torch.stack([reduce(torch.maximum, side) for side in sides], 1)
        member = inside.index_select(0, y.flatten().clamp_min(0)).view(y.shape)
        # a tie is decided as for the mask itself
        predicted = inside.index_select(0, classes(logits).flatten()).view(y.shape)
        only = torch.tensor([[False, True]])
        return self._pixels(pair, y, member, only, away=True, predicted=predicted)


class TargetMask(Masks):
    """Replace the mask of one class by another; all else stays as in the truth.

    Harm: how far the Dice of that class with the target is above 0.75. An empty target has Dice 0
        until no pixel is predicted as the class; there, the fraction of such pixels is subtracted,
        so that the search sees progress.
    Final: every counted pixel is as in the target.

    Args:
        card: card of the data.
        label: the class id whose mask is replaced.
        mask, size, by: the new mask, see `shapes.replaced`.
    """

    def __init__(
        self, card: DatasetCard, *, mask: str, label: int, size: float = 0.4, by: int = 3
    ) -> None:
        super().__init__(card)
        if not 0 < label < self.k:
            raise SpecError(f"expected label in 1..{self.k - 1}, got {label}")
        shapes.check(mask, size=size, by=by, side=min(card.size))
        self.label, self._mask, self._size, self._by = label, mask, size, by
        self._drawn: tuple[Tensor, Tensor] | None = None  # truth and target, one row per image

    def target(self, y: Int[Tensor, "b *s"]) -> Int[Tensor, "b *s"]:
        """Return the target mask; -1 where the truth is -1.

        The target that `bind` drew is used for its truths only; for others it is drawn anew.
        """
        if self._drawn is not None and torch.equal(self._drawn[0], y):
            return self._drawn[1]
        return shapes.replaced(y, self.label, self._mask, size=self._size, by=self._by)

    def bind(self, y: Int[Tensor, "b *s"]) -> TargetMask:
        """Return the objective with the targets of these truths, drawn once for all steps."""
        return self._with((y, self.target(y)))

    def select(self, rows: Rows) -> TargetMask:
        """Return the objective of some rows, with their targets."""
        if self._drawn is None:
            return self
        return self._with((self._drawn[0][rows], self._drawn[1][rows]))

    def _with(self, drawn: tuple[Tensor, Tensor]) -> TargetMask:
        bound = copy(self)
        bound._drawn = drawn
        return bound

    def pixels(self, output: Output, y: Int[Tensor, "b *s"]) -> Pixels:
        """Return the pixels; the reference is the target, and the region is the replaced class."""
        only = torch.arange(self.k)[None] == self.label
        return self._pixels(two_sided(output.logits), y, self.target(y), only, away=False)

    def verdict(self, pixels: Pixels, loss: PerSample) -> Verdict:
        """Return the verdict on the pixels, with this loss."""
        table = confusion(pixels)
        score = dice(table, pixels.regions)[:, 0]
        remaining = table[:, :, self.label].sum(1) / pixels.counted.sum(1).clamp_min(1)
        remaining = torch.where(table[:, self.label].sum(1) == 0, remaining, 0.0)
        return Verdict(
            loss, score - remaining - TARGET_DICE, (pixels.reached | ~pixels.counted).all(1)
        )

    def applies(self, y: Int[Tensor, "b *s"]) -> Bool[Tensor, " b"]:
        """Return the images whose target is not their truth."""
        return (self.target(y) != y).flatten(1).any(1)
