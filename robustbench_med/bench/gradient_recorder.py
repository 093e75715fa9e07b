"""Gradient recorder: keeps a few of the gradients that an attack really got, for later checks.

A module may answer honestly and lie about its gradients, at all times or only while it is attacked:
on large batches, after many calls, on some images. So what is checked is a draw from the attack's
own calls, taken on both sides of the module: hooks that the module sets on its input, its output or
itself act inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from robustbench_med.types import Images, Logits


@dataclass
class GradientSample:
    """What an attack asked of one image and what it got.

    Attributes:
        shown: `(c, *s)` the normalised image.
        logits: `(k, *places)` the answer, in the pass that was differentiated.
        cotangent: `(k, *places)` gradient of the attack's loss with respect to the logits.
        gradient: `(c, *s)` gradient of the attack's loss with respect to `shown`.
    """

    shown: Tensor
    logits: Tensor
    cotangent: Tensor
    gradient: Tensor


@dataclass
class GradientRecorder:
    """Draws gradients from all calls of an attack, each image of each call with equal chance.

    Attributes:
        keep: how many are kept at most.
        seed: of the draw.
        active: whether calls are recorded.
        calls: how often it was differentiated while it was active.
        images: how many images in all.
    """

    keep: int
    seed: int = 0
    active: bool = True
    calls: int = 0
    images: int = 0
    _slots: dict[int, GradientSample] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def __call__(self, answer: Callable[[Images], Logits], shown: Images) -> Logits:
        """Return the logits of `shown`, and keep what flows back through some of its rows."""
        if not (self.active and torch.is_grad_enabled() and shown.requires_grad):
            return answer(shown)
        places = self._draw(len(shown))
        if not places:
            return answer(shown)
        slots, rows = list(places), torch.tensor(list(places.values()), device=shown.device)
        images = shown.detach()[rows].clone()
        # two copies: a hook that the module sets on what it is handed acts before ours
        entry = shown.clone()
        logits = answer(entry.clone())
        if not logits.requires_grad:
            return logits
        leaving = logits.clone()
        recorded = logits.detach()[rows].clone()
        cotangents: list[Tensor] = []

        def forth(u: Tensor) -> None:
            cotangents[:] = [u.detach()[rows].clone()]

        def back(g: Tensor | None) -> None:
            if g is None or not cotangents:  # None: nothing flowed back through the module
                return
            gradients = g.detach()[rows].clone()
            for i, slot in enumerate(slots):
                # of a Jacobian, the last row that asks this image anything
                if bool((cotangents[0][i] != 0).any()):
                    self._slots[slot] = GradientSample(
                        images[i], recorded[i], cotangents[0][i], gradients[i]
                    )

        leaving.register_hook(forth)
        entry.register_hook(back)
        return leaving

    @property
    def samples(self) -> list[GradientSample]:
        """The gradients that were kept."""
        return [self._slots[slot] for slot in sorted(self._slots)]

    def _draw(self, count: int) -> dict[int, int]:
        """Return which of `count` rows are kept, by slot.

        Two reservoirs: over all images of all calls, and over the calls, of each one image. Calls
        late in an attack are of the few images that are still robust, and weigh as much as others.
        """
        half = self.keep // 2
        order = np.arange(self.images, self.images + count)
        slots = np.where(order < half, order, self._random.integers(0, order + 1)).tolist()
        places = {slot: row for row, slot in enumerate(slots) if slot < half}
        latest = self.keep - half
        late = self.calls if self.calls < latest else int(self._random.integers(0, self.calls + 1))
        if late < latest:
            places[half + late] = int(self._random.integers(0, count))
        if self.calls == 0:  # of an attack of one step there is no other call
            others = [row for row in range(count) if row not in places.values()]
            places |= {half + i: row for i, row in enumerate(others[:latest])}
        self.images += count
        self.calls += 1
        return places
