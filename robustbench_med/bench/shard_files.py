"""Shard files: the finished shards of a case that still runs, so that a stop loses at most one.

They lie in a hidden folder beside the record, and are removed when the record is written. A file
that is damaged, or is of other images, is computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from robustbench_med.bench.gradient_recorder import GradientSample
from robustbench_med.bench.measurements import Measurements
from robustbench_med.files import write_bytes
from robustbench_med.problem import Counter

_log = logging.getLogger(__name__)
_DIGEST = hashlib.sha256().digest_size


class Shard(NamedTuple):
    """The measurements of a shard of the attacked images, and what they cost.

    Attributes:
        rungs: the measurements `(r, b, ...)` by name, smallest radius first.
        distance: `(b,)` the norm of the smallest success, if the attack minimises it.
        inferred: `(r, b)` which pairs of a rung and an image were inferred to be robust.
        counter: the passes of this shard.
        gradients: the gradients that were recorded in this shard.
    """

    rungs: Measurements
    distance: Float[Tensor, " b"] | None
    inferred: Bool[Tensor, "r b"] | None
    counter: Counter
    gradients: tuple[GradientSample, ...] = ()


@dataclass(frozen=True)
class ShardFiles:
    """The folder of the finished shards of one run of an attack."""

    folder: Path

    def part(self, name: str) -> ShardFiles:
        """Return the folder of another run of the same case."""
        return ShardFiles(self.folder / name)

    def read(self, index: int, streams: Int[Tensor, " b"]) -> Shard | None:
        """Return a stored shard; None if there is none, it is damaged or is of other images.

        Args:
            index: the place of the shard in the case.
            streams: the keys of its images' random draws, which tell the images apart.
        """
        try:
            raw = self._path(index).read_bytes()
        except OSError:
            return None
        content = raw[_DIGEST:]
        if hashlib.sha256(content).digest() != raw[:_DIGEST]:
            return None
        try:
            return _unpacked(content, streams)
        except (SafetensorError, KeyError, ValueError, TypeError):
            return None

    def write(self, index: int, streams: Int[Tensor, " b"], shard: Shard) -> None:
        """Store a shard in one step; where the folder cannot be written, log that and go on."""
        content = _packed(streams, shard)
        try:
            write_bytes(self._path(index), hashlib.sha256(content).digest() + content)
        except OSError as error:
            _log.warning("%s: a finished shard is not stored: %s", self.folder, error.strerror)

    def remove(self) -> None:
        """Remove the folder with all shards, also those of other runs of the case."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"shard_{index}.bin"


def shards_of_case(folder: Path, case_id: str) -> ShardFiles:
    """Return the shard files of a case in a results folder."""
    return ShardFiles(folder / f".{case_id}.shards")


def _packed(streams: Int[Tensor, " b"], shard: Shard) -> bytes:
    tensors = {f"rung {name}": value for name, value in shard.rungs.items()}
    tensors |= {"streams": streams}
    for name in ("distance", "inferred"):
        if (value := getattr(shard, name)) is not None:
            tensors[name] = value
    for i, sample in enumerate(shard.gradients):
        fields = ("shown", "logits", "cotangent", "gradient")
        tensors |= {f"gradient {i} {name}": getattr(sample, name) for name in fields}
    contiguous = {name: value.cpu().contiguous() for name, value in tensors.items()}
    return save(contiguous, {"counter": json.dumps(asdict(shard.counter))})


def _unpacked(content: bytes, streams: Int[Tensor, " b"]) -> Shard | None:
    """Return the shard in the content of a file; None if it is of other images."""
    tensors = {name: value.to(streams.device) for name, value in load(content).items()}
    stored = tensors.pop("streams")
    if stored.shape != streams.shape or not bool((stored == streams).all()):
        return None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    counter = Counter(**json.loads(header["__metadata__"]["counter"]))
    rungs = {
        name.removeprefix("rung "): value
        for name, value in tensors.items()
        if name.startswith("rung ")
    }
    count = len({name.split()[1] for name in tensors if name.startswith("gradient ")})
    gradients = tuple(
        GradientSample(
            *(tensors[f"gradient {i} {f}"] for f in ("shown", "logits", "cotangent", "gradient"))
        )
        for i in range(count)
    )
    return Shard(rungs, tensors.get("distance"), tensors.get("inferred"), counter, gradients)
