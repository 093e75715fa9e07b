"""Shard files: the finished shards of a case that still runs, so that a stop loses at most one.

They lie in a hidden folder beside the record, and are removed when the record is written. A file
that is damaged, or is of other images, is computed again. Where shards are computed by workers, a
worker reads and makes them in memory (`ShardBytes`), and the driver alone writes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from robustbench_med.bench import crafted
from robustbench_med.bench.crafted import Crafted, pack_samples, unpack_samples
from robustbench_med.bench.gradient_recorder import GradientSample
from robustbench_med.bench.measurements import Measurements
from robustbench_med.files import write_bytes
from robustbench_med.problem import Counter

_log = logging.getLogger(__name__)
_logged: set[Path] = set()  # folders that could not be written, each named once
CRAFTED = "crafted.bin"  # the file of what a case crafted on a surrogate that others share
_DIGEST = hashlib.sha256().digest_size


class Shard(NamedTuple):
    """The measurements of a shard of the attacked images, and what they cost.

    Attributes:
        rungs: the measurements `(r, b, ...)` by name, smallest radius first.
        distance: `(b,)` the norm of the smallest success, if the attack minimises it.
        inferred: `(r, b)` which pairs of a rung and an image were inferred to be robust.
        counter: the passes of this shard.
        gradients: the gradients that were recorded in this shard.
        seconds: how long the shard took.
        peak: the peak memory in MiB, as `provenance.peak_mib` measures it.
        crafted: what was crafted on a surrogate, if other cases share that.
    """

    rungs: Measurements
    distance: Float[Tensor, " b"] | None
    inferred: Bool[Tensor, "r b"] | None
    counter: Counter
    gradients: tuple[GradientSample, ...] = ()
    seconds: float = 0.0
    peak: float = 0.0
    crafted: Crafted | None = None


@runtime_checkable
class Shards(Protocol):
    """The finished shards of one run of an attack."""

    def part(self, name: str) -> Shards:
        """Return the shards of another run of the same case."""
        ...

    def read(self, index: int, streams: Int[Tensor, " b"]) -> Shard | None:
        """Return a finished shard; None if there is none, it is damaged or is of other images.

        Args:
            index: the place of the shard in the case.
            streams: the keys of its images' random draws, which tell the images apart.
        """
        ...

    def write(self, index: int, streams: Int[Tensor, " b"], shard: Shard) -> None:
        """Keep a finished shard."""
        ...


@dataclass(frozen=True)
class ShardFiles:
    """The folder of the finished shards of one run of an attack."""

    folder: Path

    def part(self, name: str) -> ShardFiles:
        """Return the folder of another run of the same case."""
        return ShardFiles(self.folder / name)

    def read(self, index: int, streams: Int[Tensor, " b"]) -> Shard | None:
        """Return a stored shard; None if there is none, it is damaged or is of other images."""
        try:
            raw = (self.folder / name_of(index)).read_bytes()
        except OSError:
            return None
        return unpacked(raw, streams)

    def write(self, index: int, streams: Int[Tensor, " b"], shard: Shard) -> None:
        """Store a shard in one step; where the folder cannot be written, log that and go on."""
        self.store(name_of(index), packed(streams, shard))

    def load(self) -> dict[str, bytes]:
        """Return the content of every file by name, also those of other runs of the case."""
        contents = {}
        for path in sorted(self.folder.rglob("shard_*.bin")):
            with contextlib.suppress(OSError):
                contents[path.relative_to(self.folder).as_posix()] = path.read_bytes()
        return contents

    def store(self, name: str, content: bytes) -> bool:
        """Write a file in one step and return whether it is stored; log once where it cannot be."""
        try:
            write_bytes(self.folder / name, content)
        except OSError as error:
            if self.folder not in _logged:
                _logged.add(self.folder)
                _log.warning("%s: a finished shard is not stored: %s", self.folder, error.strerror)
            return False
        return True

    def remove_shards(self) -> None:
        """Remove all shards, and keep what later cases need to know of the surrogate's images."""
        for path in self.folder.rglob("shard_*.bin"):
            with contextlib.suppress(OSError):
                path.unlink()

    def load_crafted(self) -> bytes | None:
        """Return what the case crafted on a surrogate; None if that is not stored."""
        try:
            return (self.folder / CRAFTED).read_bytes()
        except OSError:
            return None

    def remove(self) -> None:
        """Remove the folder with all shards, also those of other runs of the case."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class ShardBytes:
    """The finished shards of one run of an attack, in memory as they are in a file.

    Attributes:
        known: content by name, of all runs of the case.
        new: the content that was written here.
        prefix: the folder of this run.
    """

    known: Mapping[str, bytes]
    new: dict[str, bytes] = field(default_factory=dict)
    prefix: str = ""

    def part(self, name: str) -> ShardBytes:
        """Return the shards of another run of the same case."""
        return ShardBytes(self.known, self.new, f"{self.prefix}{name}/")

    def read(self, index: int, streams: Int[Tensor, " b"]) -> Shard | None:
        """Return a finished shard; None if there is none, it is damaged or is of other images."""
        name = self.prefix + name_of(index)
        raw = self.new.get(name) or self.known.get(name)
        return None if raw is None else unpacked(raw, streams)

    def write(self, index: int, streams: Int[Tensor, " b"], shard: Shard) -> None:
        """Keep a finished shard in memory."""
        self.new[self.prefix + name_of(index)] = packed(streams, shard)


def name_of(index: int) -> str:
    """Return the name of a shard's file."""
    return f"shard_{index}.bin"


def shards_of_case(folder: Path, case_id: str) -> ShardFiles:
    """Return the shard files of a case in a results folder."""
    return ShardFiles(folder / f".{case_id}.shards")


def packed(streams: Int[Tensor, " b"], shard: Shard) -> bytes:
    """Return the content of a shard's file: a checksum, and the measurements as safetensors."""
    tensors = {f"rung {name}": value for name, value in shard.rungs.items()}
    tensors |= {"streams": streams}
    for name in ("distance", "inferred"):
        if (value := getattr(shard, name)) is not None:
            tensors[name] = value
    tensors |= pack_samples(dict(enumerate(shard.gradients)))
    if shard.crafted is not None:
        tensors["crafted"] = torch.frombuffer(
            bytearray(crafted.packed(shard.crafted)), dtype=torch.uint8
        )
    contiguous = {name: value.cpu().contiguous() for name, value in tensors.items()}
    cost = {"counter": asdict(shard.counter), "seconds": shard.seconds, "peak": shard.peak}
    content: bytes = save(contiguous, {"cost": json.dumps(cost)})
    return hashlib.sha256(content).digest() + content


def unpacked(raw: bytes, streams: Int[Tensor, " b"]) -> Shard | None:
    """Return the shard in the content of a file; None if it is damaged or of other images."""
    content = raw[_DIGEST:]
    if hashlib.sha256(content).digest() != raw[:_DIGEST]:
        return None
    try:
        return _unpacked(content, streams)
    except (SafetensorError, KeyError, ValueError, TypeError):
        return None


def _unpacked(content: bytes, streams: Int[Tensor, " b"]) -> Shard | None:
    tensors = {name: value.to(streams.device) for name, value in load(content).items()}
    stored = tensors.pop("streams")
    if stored.shape != streams.shape or not bool((stored == streams).all()):
        return None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    cost = json.loads(header["__metadata__"]["cost"])
    rungs = {
        name.removeprefix("rung "): value
        for name, value in tensors.items()
        if name.startswith("rung ")
    }
    shared = None
    if "crafted" in tensors:
        raw = tensors["crafted"].cpu().numpy().tobytes()
        shared = crafted.unpacked(raw, streams.device)
    return Shard(
        rungs,
        tensors.get("distance"),
        tensors.get("inferred"),
        Counter(**cost["counter"]),
        tuple(unpack_samples(tensors).values()),
        cost["seconds"],
        cost["peak"],
        shared,
    )
