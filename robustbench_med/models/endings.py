"""Find the last operation of a module through autograd, and read the values before it."""

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
# nodes that move values without changing them
_MOVES = re.compile(
    r"(UnsafeView|ReshapeAlias|View|Squeeze|Unsqueeze|Select|Slice|Index|Narrow|Transpose|T|"
    r"Permute|Clone|ToCopy|Alias|AsStrided|Unbind|Split|SplitWithSizes|IndexSelect|Gather|Cat|"
    r"Stack|Expand|Flip)Backward"
)
SCALE = "scale"
_SCALES = re.compile(r"(Mul|Div|Add|Sub)Backward")
_SKIPPED = ("sigmoid", "softmax")  # which Squashes can leave out
_AFFINE = re.compile(r"(Addmm|Baddbmm|Addmv|Linear|(Mkldnn|Cudnn|Slow|Thnn)?Convolution)Backward")


class Ending(NamedTuple):
    """The last operation of a module.

    Attributes:
        name: name of the squashing function that comes last; "" if there is none or it is unknown,
            as for a scripted or compiled module, a custom function, or outputs without gradient.
        affine: whether a linear layer or a convolution comes last.
        bypass: the calls to bypass to read the values before that function; None if unknown.
        row: all functions at the end, the last one first, where there are several in a row: two
            squashing ones, or a scale behind one.
        bypass_row: the calls to bypass to read the values before all squashing functions of `row`.
    """

    name: str = ""
    affine: bool = False
    bypass: Bypass | None = None
    row: tuple[str, ...] = ()
    bypass_row: Bypass | None = None


def ending_of(victim: Victim, x: Images, reading: Reading) -> Ending:
    """Return the last operation of the outputs that are read from a victim's module."""
    calls = Squashes(record=True)
    compiled = any(
        isinstance(submodule, torch.jit.ScriptModule) or hasattr(submodule, "_orig_mod")
        for submodule in victim.module.modules()
    )
    x = x.clone()
    with torch.enable_grad(), contextlib.nullcontext() if compiled else calls:
        x.requires_grad_(True)
        try:
            raw = victim.module(victim.normalised(x))
        except Exception:  # foreign code may raise anything; it ran without gradients before
            return Ending()
    tensor = leaves(raw).get(reading.path)
    nodes = [] if tensor is None else _last_nodes(tensor.grad_fn)
    names = {_name(node) for node in nodes}
    if len(names) != 1:
        return Ending()
    name = names.pop()
    indices = [[i for i, call in enumerate(calls.nodes) if call is node] for node in nodes]
    known = all(indices) and name in _SQUASHES
    bypass = Bypass(frozenset(matches[0] for matches in indices), calls.count) if known else None
    row = _row(nodes[0]) if len(nodes) == 1 else []
    names_, bypass_row = tuple(name for name, _ in row), None
    squashed = [node for name, node in row if name in (*_SKIPPED, LOG_SIGMOID, LOG_SOFTMAX)]
    if len(squashed) > 1 or (squashed and names_[0] == SCALE):
        inner = [node for name, node in row if name in _SKIPPED]
        places = [[i for i, call in enumerate(calls.nodes) if call is node] for node in inner]
        if inner and all(places) and "hard sigmoid" not in names_:
            bypass_row = Bypass(frozenset(place[0] for place in places), calls.count)
    else:
        names_ = ()
    ended = _SQUASHES.get(name, ""), bool(_AFFINE.fullmatch(name))
    return Ending(*ended, bypass, names_, bypass_row)


def _row(node: Any) -> list[tuple[str, Any]]:  # noqa: ANN401
    """Return the squashing functions and scales that end in a node, the last one first."""
    row: list[tuple[str, Any]] = []
    while node is not None:
        name, before = _name(node), [other for other, _ in node.next_functions if other is not None]
        parameters = [
            other for other in before if _name(other) == "torch::autograd::AccumulateGrad"
        ]
        before = [other for other in before if other not in parameters]
        if name in _SQUASHES:
            row.append((_SQUASHES[name], node))
        elif _SCALES.fullmatch(name) and len(before) == 1:
            row.append((SCALE, node))
        elif not _MOVES.fullmatch(name):
            break
        node = before[0] if len(before) == 1 else None
    while row and row[-1][0] == SCALE:
        row.pop()
    return row


def _last_nodes(node: Any) -> list[Any]:  # noqa: ANN401 - autograd's nodes have no common type
    """Return the nodes that computed the values; [] if some values have no node."""
    waiting, ends, visited = [node], [], set()
    while waiting:
        node = waiting.pop()
        if node is None:
            return []
        if node in visited:
            continue
        visited.add(node)
        if _MOVES.fullmatch(_name(node)):
            waiting += [before for before, _ in node.next_functions]
        else:
            ends.append(node)
    return ends


def _name(node: Any) -> str:  # noqa: ANN401
    return re.sub(r"\d+$", "", str(node.name()))


def link_of(p: Tensor, *, independent: bool) -> Link:
    """Return the link of probabilities `(b, k, *s)`: "log" if they sum to 1 over classes.

    Args:
        p: probabilities that the module returned.
        independent: whether each probability is that of an independent finding.
    """
    if independent or not bool(((p.sum(1) - 1).abs() < 1e-3).all()):
        return "logit"
    return "log"


def bypassing(victim: Victim, x: Images, reading: Reading, end: Ending, p: Tensor) -> Reading:
    """Return a reading that bypasses the last sigmoid or softmax, if it gives the same result.

    Args:
        victim: its module is read.
        x: images.
        reading: has the link of the probabilities.
        end: last operation of the module.
        p: outputs of the module for `x`.
    """
    if end.bypass is None:
        return reading
    shorter = replace(reading, bypass=end.bypass)
    try:
        logits = shorter.logits(victim.module, victim.normalised(x))
    except Exception:  # foreign code may raise anything: the probabilities are read then
        return reading
    return shorter if agrees(logits, p, reading.link) else reading


def agrees(logits: Tensor, numbers: Tensor, link: Link) -> bool:
    """Return whether logits and the values that a module returns are the same probabilities."""
    logits, numbers = logits.double(), numbers.double()
    p = logits.softmax(1) if link == "log" else logits.sigmoid()
    return torch.allclose(p, numbers.exp() if link == "log_odds" else numbers, atol=1e-3)
