"""Random draws keyed by sample: batch size, order and sharding never change them.

A library's generator has one stream for all callers; here every row has a stream of its own. The
counter-based mixer is SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014, fig. 14), computed on int64 tensors for a whole batch at once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustbench_med.types import Rows

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(bits: Tensor, by: int) -> Tensor:
    # `>>` on int64 copies the sign bit, so mask it away
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift(bits, 30)) * _MIX_1
    bits = (bits ^ _shift(bits, 27)) * _MIX_2
    return bits ^ _shift(bits, 31)


def key(*words: object) -> int:
    """Return a signed 64-bit key that depends on every word."""
    digest = hashlib.sha256("\0".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


@contextmanager
def seeded(*words: object) -> Iterator[None]:
    """Seed torch's own generators for a victim that draws from them; restore them afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(key(*words) & 0x7FFF_FFFF)
        yield


@dataclass(frozen=True)
class Draws:
    """One random stream per row.

    Attributes:
        keys: `(b,)` int64, one key per sample.
    """

    keys: Int[Tensor, " b"]

    @classmethod
    def of(cls, seed: int, ids: Iterable[str], *, device: torch.device | str = "cpu") -> Draws:
        """Return the streams of the samples `ids` under `seed`."""
        return cls(
            torch.tensor([key(seed, name) for name in ids], dtype=torch.int64, device=device)
        )

    def fork(self, *words: object) -> Draws:
        """Return independent streams for a purpose, e.g. `fork("restart", 2)`."""
        return Draws(_mix(self.keys + key(*words)))

    def select(self, rows: Rows) -> Draws:
        """Return the streams of the given rows."""
        return Draws(self.keys[rows])

    def uniform(self, *shape: int) -> Float[Tensor, "b *shape"]:
        """Return uniform draws in (0, 1), `(b, *shape)` float32; the same at every call."""
        count = torch.arange(1, math.prod(shape) + 1, device=self.keys.device)
        bits = _mix(self.keys[:, None] + count * _GOLDEN)
        # 23 bits and a half: every value is exact in float32, and neither 0 nor 1 can occur
        return _shift(bits, 41).float().add_(0.5).mul_(2.0**-23).view(len(self.keys), *shape)

    def normal(self, *shape: int) -> Float[Tensor, "b *shape"]:
        """Return standard normal draws, `(b, *shape)` float32."""
        u = self.uniform(*shape).double()
        normal: Tensor = torch.special.ndtri(u).float()
        return normal
