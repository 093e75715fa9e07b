"""Objectives on masks: spoil all regions, spoil one, or draw another mask in a region's place.

Pixels labelled -1 (outside a field of view, or 255 in a file) are neither climbed nor counted.
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

LOST = 0.5  # an image is called broken where its Dice is below: less than half of it is right
DRAWN = 0.75  # a target counts as drawn from this Dice on


class Pixels(NamedTuple):
    """What the pixels of each image say; `p` of them, in one row an image.

    Attributes:
        logits: of at least two classes.
        reference: the class a pixel is to leave, or to reach; 0 where it does not count.
        counted: whether it counts.
        called: the class it is called; the first on a tie.
        reached: whether it is as the attacker wants it; False where it does not count.
        away: whether it is to leave the reference (untargeted), or to reach it (targeted).
        regions: which classes make each region.
    """

    logits: Float[Tensor, "b k p"]
    reference: Int[Tensor, "b p"]
    counted: Bool[Tensor, "b p"]
    called: Int[Tensor, "b p"]
    reached: Bool[Tensor, "b p"]
    away: bool
    regions: Bool[Tensor, "r k"]

    @property
    def cross_entropy(self) -> Float[Tensor, "b p"]:
        """The cross-entropy of the reference, by its log-odds: sure pixels have a gradient too."""
        if self.logits.shape[1] > 2:
            return functional.softplus(log_odds_against(self.logits, self.reference))
        outside, inside = self.logits.unbind(1)  # the same of two, without a scatter
        return functional.softplus((inside - outside) * (1 - 2 * self.reference))

    @property
    def active(self) -> Bool[Tensor, "b p"]:
        """The counted pixels not yet as wanted; all that count where none of an image is left.

        With every pixel wrong an image may not be done: its Dice stays above 0 while a region that
        is absent is not called. Without the latter its gradient would be 0, and it could not go on.
        """
        left = self.counted & ~self.reached
        return left | (self.counted & ~left.any(1, keepdim=True))

    def mean(self, each: Float[Tensor, "b p"]) -> PerSample:
        """Return the mean of `each` over the pixels that count; 0 where none does."""
        return (each * self.counted).sum(1) / self.counted.sum(1).clamp_min(1)

    def gain(self, each: Float[Tensor, "b p"]) -> PerSample:
        """Return what the attacker climbs: the mean of a loss that pushes away, or minus it."""
        return self.mean(each) if self.away else -self.mean(each)


def classes(logits: Float[Tensor, "b k *s"]) -> Int[Tensor, "b *s"]:
    """Return the class of the largest logit; the first on a tie.

    Class by class: `argmax` over an axis that is not the last takes as long as a small network.
    """
    logits = logits.detach()
    largest, found = logits[:, 0], torch.zeros_like(logits[:, 0], dtype=torch.long)
    for k in range(1, logits.shape[1]):
        found = torch.maximum(found, (logits[:, k] > largest) * k)
        largest = torch.maximum(largest, logits[:, k])
    return found


def confusion(here: Pixels) -> Float[Tensor, "b k k"]:
    """Return how many counted pixels of each reference class are called each class."""
    b, k, _ = here.logits.shape
    cell = here.reference * k + here.called + ~here.counted * k * k  # the latter to be dropped
    cell = cell + torch.arange(b, device=cell.device)[:, None] * 2 * k * k
    count = torch.bincount(cell.flatten(), minlength=b * 2 * k * k)
    return count.view(b, 2, k, k)[:, 0].to(here.logits.dtype)


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
    """What objectives on masks share.

    Loss: mean cross-entropy of the reference over counted pixels; minus it where that is the goal.
    Margins do not exist: the ways of a mask to be wrong are too many to differentiate one by one.
    """

    def __init__(self, card: DatasetCard) -> None:
        self.k = len(card.classes)
        ids = torch.arange(self.k)
        self.regions = torch.stack([torch.isin(ids, torch.tensor(p)) for p in card.parts.values()])

    @abstractmethod
    def pixels(self, output: Output, y: Int[Tensor, "b *s"]) -> Pixels:
        """Return what each pixel says of logits `(b, k, *s)` against masks `y`."""

    @abstractmethod
    def verdict(self, here: Pixels, loss: PerSample) -> Verdict:
        """Return the verdict on what the pixels say, with the loss given."""

    def __call__(self, output: Output, y: Int[Tensor, "b *s"]) -> Verdict:
        """Return the verdict on logits `(b, k, *s)` against masks `y`."""
        here = self.pixels(output, y)
        return self.verdict(here, here.gain(here.cross_entropy))

    def _pixels(
        self,
        logits: Logits,
        y: Tensor,
        reference: Tensor,
        regions: Tensor,
        *,
        away: bool,
        called: Tensor | None = None,
    ) -> Pixels:
        flat, counted = logits.flatten(2), (y >= 0).flatten(1)
        reference = reference.flatten(1).clamp_min(0)
        called = classes(flat) if called is None else called.flatten(1)
        reached = ((called != reference) if away else (called == reference)) & counted
        return Pixels(flat, reference, counted, called, reached, away, regions.to(flat.device))

    def margins(self, output: Output, y: Int[Tensor, "b *s"]) -> Tensor:  # noqa: ARG002
        """Raise: there are none.

        Raises:
            SpecError: always.
        """
        raise _no_margins()

    def dlr_scale(self, output: Output, *, towards: bool = False) -> Tensor:  # noqa: ARG002
        """Raise, as `margins`."""
        raise _no_margins()

    def applies(self, y: Int[Tensor, "b *s"]) -> Bool[Tensor, " b"]:
        """Return the images with at least one pixel that counts."""
        return (y >= 0).flatten(1).any(1)

    def select(self, rows: Rows) -> Masks:  # noqa: ARG002 - the same for every sample
        """Return the objective of the given rows: itself."""
        return self

    def bind(self, y: Int[Tensor, "b *s"]) -> Masks:  # noqa: ARG002 - nothing to prepare
        """Return the objective bound to these truths: itself."""
        return self


def _no_margins() -> SpecError:
    return SpecError("expected an attack or loss that needs no margins of classes, for masks")


class Damage(Masks):
    """Spoil every region.

    Harm: how far the image's Dice, the mean over its regions, is below 0.5. Done: it is 0, and
        nothing is left to spoil.
    """

    def pixels(self, output: Output, y: Int[Tensor, "b *s"]) -> Pixels:
        """Return what each pixel says; the reference is the truth."""
        return self._pixels(two_sided(output.logits), y, y, self.regions, away=True)

    def verdict(self, here: Pixels, loss: PerSample) -> Verdict:
        """Return the verdict on what the pixels say, with the loss given."""
        found = dice(confusion(here), here.regions).mean(1)
        return Verdict(loss, LOST - found, found == 0)


class OneRegion(Damage):
    """Spoil one region, whatever becomes of the others.

    A pixel is inside the region or outside it, with the largest logit of the classes on either
    side. Harm: how far the region's Dice is below 0.5.
    """

    def __init__(self, card: DatasetCard, region: str) -> None:
        super().__init__(card)
        if region not in card.parts:
            raise SpecError(f"expected a region in {', '.join(card.parts)}, got {region!r}")
        self.inside = self.regions[list(card.parts).index(region)]
        if bool(self.inside.all()):
            raise SpecError(f"expected a region that leaves some class out, got {region!r}")

    def pixels(self, output: Output, y: Int[Tensor, "b *s"]) -> Pixels:
        """Return what each pixel says of two classes: outside and inside."""
        logits, inside = two_sided(output.logits), self.inside.long().to(y.device)
        sides: tuple[list[Tensor], list[Tensor]] = [], []
        for here, one in zip(self.inside.tolist(), logits.unbind(1), strict=True):
            sides[here].append(one)
        pair = torch.stack([reduce(torch.maximum, side) for side in sides], 1)
        member = inside.index_select(0, y.flatten().clamp_min(0)).view(y.shape)
        # on a tie, what the mask itself says
        called = inside.index_select(0, classes(logits).flatten()).view(y.shape)
        only = torch.tensor([[False, True]])
        return self._pixels(pair, y, member, only, away=True, called=called)


class TargetMask(Masks):
    """Have another mask drawn in the place of one class; all else as in the truth.

    Harm: how far the Dice of that class with the target is above 0.75; of an empty target, whose
        Dice is 0 until nothing is left, that minus the share of the pixels still called the class,
        so that the search sees it shrink. Done: every counted pixel is as drawn.

    Args:
        card: of the data.
        label: the class id whose mask is replaced.
        mask, size, by: what is drawn, see `shapes.replaced`.
    """

    def __init__(
        self, card: DatasetCard, *, mask: str, label: int, size: float = 0.4, by: int = 3
    ) -> None:
        super().__init__(card)
        if not 0 < label < self.k:
            raise SpecError(f"expected label in 1..{self.k - 1}, got {label}")
        shapes.check(mask, size=size, by=by, side=min(card.size))
        self.label, self._mask, self._size, self._by = label, mask, size, by
        self._drawn: tuple[Tensor, Tensor] | None = None  # truth and target, a row an image

    def target(self, y: Int[Tensor, "b *s"]) -> Int[Tensor, "b *s"]:
        """Return the mask wanted; -1 where the truth is.

        What `bind` drew is used for that truth alone: of another, the target is drawn here.
        """
        if self._drawn is not None and torch.equal(self._drawn[0], y):
            return self._drawn[1]
        return shapes.replaced(y, self.label, self._mask, size=self._size, by=self._by)

    def bind(self, y: Int[Tensor, "b *s"]) -> TargetMask:
        """Return the objective with the targets of these truths drawn, once for all steps."""
        return self._with((y, self.target(y)))

    def select(self, rows: Rows) -> TargetMask:
        """Return the objective of the given rows, with the targets drawn for them."""
        if self._drawn is None:
            return self
        return self._with((self._drawn[0][rows], self._drawn[1][rows]))

    def _with(self, drawn: tuple[Tensor, Tensor]) -> TargetMask:
        found = copy(self)
        found._drawn = drawn
        return found

    def pixels(self, output: Output, y: Int[Tensor, "b *s"]) -> Pixels:
        """Return what each pixel says; the reference is the target, the region the class drawn."""
        only = torch.arange(self.k)[None] == self.label
        return self._pixels(two_sided(output.logits), y, self.target(y), only, away=False)

    def verdict(self, here: Pixels, loss: PerSample) -> Verdict:
        """Return the verdict on what the pixels say, with the loss given."""
        table = confusion(here)
        found = dice(table, here.regions)[:, 0]
        left = table[:, :, self.label].sum(1) / here.counted.sum(1).clamp_min(1)
        left = torch.where(table[:, self.label].sum(1) == 0, left, 0.0)
        return Verdict(loss, found - left - DRAWN, (here.reached | ~here.counted).all(1))

    def applies(self, y: Int[Tensor, "b *s"]) -> Bool[Tensor, " b"]:
        """Return the images whose target is not their truth."""
        return (self.target(y) != y).flatten(1).any(1)
