"""Gradient recorder: store a few of the gradients that an attack computed, for later checks.

A module may give right outputs but wrong gradients, always or only during an attack: on large
batches, after many calls, on some images. Therefore the check uses a random sample of the attack's
own calls. It is recorded outside the module, before its input and after its output, so that hooks
of the module on its input, its output or itself take effect in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustbench_med.types import Images, Logits


@dataclass
class GradientSample:
    """The inputs and results of one backward pass of an attack, for one image.

    Attributes:
        shown: `(c, *s)` the normalised image.
        logits: `(k, *places)` the output, in the pass that was differentiated.
        cotangent: `(k, *places)` gradient of the attack's loss with respect to the logits.
        gradient: `(c, *s)` gradient of the attack's loss with respect to `shown`.
    """

    shown: Tensor
    logits: Tensor
    cotangent: Tensor
    gradient: Tensor


@dataclass
class GradientRecorder:
    """Draw a random sample of gradients from all calls of an attack.

    Attributes:
        keep: largest number of gradients that are stored.
        seed: seed of the sample.
        active: whether calls are recorded.
        calls: number of differentiated calls while the recorder was active.
        images: number of images in these calls.
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
        """Return the logits of `shown`, and record the gradients of some of its rows."""
        if not (self.active and torch.is_grad_enabled() and shown.requires_grad):
            return answer(shown)
        before = self.calls, self.images, self._random.bit_generator.state
        places = self._draw(len(shown))
        try:
            return self._recorded(answer, shown, places)
        except (RuntimeError, MemoryError):
            # a call that failed, perhaps for lack of memory, is made again with fewer images
            self.calls, self.images, self._random.bit_generator.state = before
            raise

    def _recorded(
        self, answer: Callable[[Images], Logits], shown: Images, places: dict[int, int]
    ) -> Logits:
        if not places:
            return answer(shown)
        slots, rows = list(places), torch.tensor(list(places.values()), device=shown.device)
        images = shown.detach()[rows].clone()
        # two copies, so that a hook of the module on its input runs before ours
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
            if g is None or not cotangents:  # None: no gradient passed through the module
                return
            gradients = g.detach()[rows].clone()
            for i, slot in enumerate(slots):
                # for a Jacobian, the last row that depends on this image is stored
                if bool((cotangents[0][i] != 0).any()):
                    self._slots[slot] = GradientSample(
                        images[i], recorded[i], cotangents[0][i], gradients[i]
                    )

        leaving.register_hook(forth)
        entry.register_hook(back)
        return leaving

    def restore(self, samples: Iterable[GradientSample]) -> None:
        """Hold the gradients that an earlier process recorded."""
        self._slots = dict(enumerate(samples))

    def resume(self, samples: Mapping[int, GradientSample], state: Mapping[str, Any]) -> None:
        """Go on from the gradients and the state of another recorder; from none, begin anew."""
        self._slots = dict(samples)
        self.calls, self.images = int(state.get("calls", 0)), int(state.get("images", 0))
        self._random = np.random.default_rng(self.seed)
        if "random" in state:
            self._random.bit_generator.state = state["random"]

    @property
    def state(self) -> dict[str, Any]:
        """What the draws of later calls depend on."""
        random = self._random.bit_generator.state
        return {"calls": self.calls, "images": self.images, "random": random}

    @property
    def slots(self) -> dict[int, GradientSample]:
        """The gradients that are stored, by slot."""
        return dict(self._slots)

    @property
    def samples(self) -> list[GradientSample]:
        """The gradients that are stored."""
        return [self._slots[slot] for slot in sorted(self._slots)]

    def _draw(self, count: int) -> dict[int, int]:
        """Return which of `count` rows are stored, by slot.

        Half of the slots sample from all images of all calls, each with equal probability. The
        other half sample from the calls, and store one image of each. So late calls, which hold
        only the few images that are still robust, weigh as much as others.
        """
        half = self.keep // 2
        order = np.arange(self.images, self.images + count)
        slots = np.where(order < half, order, self._random.integers(0, order + 1)).tolist()
        places = {slot: row for row, slot in enumerate(slots) if slot < half}
        latest = self.keep - half
        late = self.calls if self.calls < latest else int(self._random.integers(0, self.calls + 1))
        if late < latest:
            places[half + late] = int(self._random.integers(0, count))
        # an attack of one step makes no other call, so the first call fills all slots
        if self.calls == 0:
            others = [row for row in range(count) if row not in places.values()]
            places |= {half + i: row for i, row in enumerate(others[:latest])}
        self.images += count
        self.calls += 1
        return places
