"""Crafted: what a shard or a case added to what was crafted on a surrogate.

Cases that share a surrogate craft each image once. Which images the cases before had crafted says
what a case costs, so a run that goes on after a stop must know it. The images themselves stay in
the cache folder of the worker (`candidates.py`); one that is lost is crafted again, at no cost in
the record.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from robustbench_med.bench.gradient_recorder import GradientSample
from robustbench_med.problem import Counter

_FIELDS = ("shown", "logits", "cotangent", "gradient")
_DIGEST = hashlib.sha256().digest_size


class Crafted(NamedTuple):
    """What was added by one shard or one case.

    Attributes:
        name: the name of the file of the images.
        keys: `(m,)` the keys of the images that were added, in their order.
        checksums: `(m,)` the checksum of each.
        samples: the gradients that were recorded, by slot of the recorder.
        recorder: the state of the recorder afterwards, apart from its gradients.
        counter: the passes with the surrogate of all cases so far.
    """

    name: str
    keys: Int[Tensor, " m"]
    checksums: Int[Tensor, " m"]
    samples: Mapping[int, GradientSample]
    recorder: Mapping[str, Any]
    counter: Counter


def pack_samples(samples: Mapping[int, GradientSample]) -> dict[str, Tensor]:
    """Return gradients as tensors, by names that tell slots and fields apart."""
    return {
        f"gradient {slot} {name}": getattr(sample, name)
        for slot, sample in samples.items()
        for name in _FIELDS
    }


def unpack_samples(tensors: Mapping[str, Tensor]) -> dict[int, GradientSample]:
    """Return the gradients among the tensors of a file, by slot."""
    slots = sorted({int(name.split()[1]) for name in tensors if name.startswith("gradient ")})
    return {
        slot: GradientSample(*(tensors[f"gradient {slot} {name}"] for name in _FIELDS))
        for slot in slots
    }


def packed(crafted: Crafted) -> bytes:
    """Return the content of a file: a checksum, and safetensors."""
    tensors = {"keys": crafted.keys, "checksums": crafted.checksums}
    tensors |= pack_samples(crafted.samples)
    contiguous = {name: value.cpu().contiguous() for name, value in tensors.items()}
    state = {"name": crafted.name, "recorder": crafted.recorder, "counter": asdict(crafted.counter)}
    content: bytes = save(contiguous, {"state": json.dumps(state)})
    return hashlib.sha256(content).digest() + content


def unpacked(raw: bytes, device: torch.device) -> Crafted | None:
    """Return what a file holds; None if it is damaged."""
    content = raw[_DIGEST:]
    if hashlib.sha256(content).digest() != raw[:_DIGEST]:
        return None
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        state = json.loads(header["__metadata__"]["state"])
        keys, checksums = tensors.pop("keys"), tensors.pop("checksums")
        moved = {name: value.to(device) for name, value in tensors.items()}
        counter = Counter(**state["counter"])
        samples = unpack_samples(moved)
        return Crafted(state["name"], keys, checksums, samples, state["recorder"], counter)
    except (SafetensorError, KeyError, ValueError, TypeError):
        return None


def joined_keys(parts: Sequence[Crafted]) -> tuple[list[int], list[int]]:
    """Return all keys of several parts and the checksums of their images, in order."""
    keys = [key for part in parts for key in part.keys.tolist()]
    return keys, [checksum for part in parts for checksum in part.checksums.tolist()]
