"""Endings: the last operation of a module, as autograd knows it, and how to get in front of it."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustbench_med.outputs import Bypass, Link, Reading, Squashes, leaves
from robustbench_med.types import Images
from robustbench_med.victim import Victim

LOG_SIGMOID, LOG_SOFTMAX = "log-sigmoid", "log-softmax"
_SQUASHES = {
    "SigmoidBackward": "sigmoid",
    "HardsigmoidBackward": "hard sigmoid",
    "SoftmaxBackward": "softmax",
    "LogSigmoidBackward": LOG_SIGMOID,
    "LogSoftmaxBackward": LOG_SOFTMAX,
}
# nodes that move numbers about and change none
_MOVES = re.compile(
    r"(UnsafeView|ReshapeAlias|View|Squeeze|Unsqueeze|Select|Slice|Index|Narrow|Transpose|T|"
    r"Permute|Clone|ToCopy|Alias|AsStrided|Unbind|Split|SplitWithSizes|IndexSelect|Gather|Cat|"
    r"Stack|Expand|Flip)Backward"
)
_AFFINE = re.compile(r"(Addmm|Baddbmm|Addmv|Linear|(Mkldnn|Cudnn|Slow|Thnn)?Convolution)Backward")


class Ending(NamedTuple):
    """What a module ends in.

    Attributes:
        name: of the squashing function that is last; "" where there is none, or it is not known:
            of a scripted or compiled module, behind an own function, without gradient.
        affine: whether a linear layer or a convolution is last.
        bypass: the calls of that function; None where they are not known.
    """

    name: str = ""
    affine: bool = False
    bypass: Bypass | None = None


def ending_of(victim: Victim, x: Images, reading: Reading) -> Ending:
    """Return what the outputs that are read of a victim's module end in."""
    calls = Squashes(record=True)
    compiled = any(
        isinstance(part, torch.jit.ScriptModule) or hasattr(part, "_orig_mod")
        for part in victim.module.modules()
    )
    x = x.clone()
    with torch.enable_grad(), contextlib.nullcontext() if compiled else calls:
        x.requires_grad_(True)
        try:
            raw = victim.module(victim.normalised(x))
        except Exception:  # a model is foreign code; without gradients it has been asked before
            return Ending()
    tensor = leaves(raw).get(reading.path)
    nodes = [] if tensor is None else _last(tensor.grad_fn)
    names = {_name(node) for node in nodes}
    if len(names) != 1:
        return Ending()
    name = names.pop()
    places = [[i for i, made in enumerate(calls.nodes) if made is node] for node in nodes]
    known = all(places) and name in _SQUASHES
    bypass = Bypass(frozenset(one[0] for one in places), calls.count) if known else None
    return Ending(_SQUASHES.get(name, ""), bool(_AFFINE.fullmatch(name)), bypass)


def _last(node: Any) -> list[Any]:  # noqa: ANN401 - autograd's nodes have no common type
    """Return the nodes that computed the numbers; [] where some of them have none."""
    waiting, ends, met = [node], [], set()
    while waiting:
        one = waiting.pop()
        if one is None:
            return []
        if one in met:
            continue
        met.add(one)
        if _MOVES.fullmatch(_name(one)):
            waiting += [before for before, _ in one.next_functions]
        else:
            ends.append(one)
    return ends


def _name(node: Any) -> str:  # noqa: ANN401
    return re.sub(r"\d+$", "", str(node.name()))


def link_of(p: Tensor, *, alone: bool) -> Link:
    """Return the link of probabilities `(b, k, *s)`: of one of several classes if they sum to 1.

    Args:
        p: as the module returned them.
        alone: whether each answers a question of its own.
    """
    if alone or not bool(((p.sum(1) - 1).abs() < 1e-3).all()):
        return "logit"
    return "log"


def direct(victim: Victim, x: Images, reading: Reading, end: Ending, p: Tensor) -> Reading:
    """Return the reading that leaves the last sigmoid or softmax out, where that is the same.

    Args:
        victim: whose module is read.
        x: images.
        reading: with the link of the probabilities.
        end: what the module ends in.
        p: its outputs for `x`.
    """
    if end.bypass is None:
        return reading
    shorter = replace(reading, bypass=end.bypass)
    try:
        logits = shorter.logits(victim.module, victim.normalised(x))
    except Exception:  # a model is foreign code: then the longer way is taken
        return reading
    return shorter if agrees(logits, p, reading.link) else reading


def agrees(logits: Tensor, numbers: Tensor, link: Link) -> bool:
    """Whether logits and the numbers that a module returns are the same probabilities."""
    logits, numbers = logits.double(), numbers.double()
    p = logits.softmax(1) if link == "log" else logits.sigmoid()
    return torch.allclose(p, numbers.exp() if link == "log_odds" else numbers, atol=1e-3)
