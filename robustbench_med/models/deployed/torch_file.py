"""Load TorchScript archives and, where the user allows it, files of torch.export."""

from __future__ import annotations

import hashlib
import io
import types
import warnings
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn

from robustbench_med.cards import DatasetCard
from robustbench_med.errors import VictimError
from robustbench_med.models.deployed.arranged import fitting
from robustbench_med.models.deployed.network import (
    Network,
    check_parameters,
    first_line,
    note_on_cut,
    squashed,
)
from robustbench_med.models.deployed.script_archive import check_script, is_exported, is_script
from robustbench_med.models.deployed.source import Deployed
from robustbench_med.models.weights import content
from robustbench_med.types import Images

_SQUASHES = {
    "aten::softmax": "softmax",
    "aten::_softmax": "softmax",
    "aten::sigmoid": "sigmoid",
}


def load_script(source: Deployed, data: DatasetCard, shown: Images) -> Network:
    """Return the network in a TorchScript archive.

    Args:
        source: the file.
        data: states channels, size and classes.
        shown: `(b, c, *s)` images of the dataset, normalised.

    Raises:
        VictimError: the file is no such archive or a damaged one, its code reaches files, or the
            network does not read such images.
    """
    check_parameters("torchscript", source.parameters)
    where = source.path.name
    raw = content(source.path)
    if not is_script(raw):
        raise VictimError(f"{where}: expected a TorchScript archive, {_other(raw)}")
    check_script(where, raw)
    module = _opened(where, raw)
    module, notes = fitting(where, module, shown)
    shorter = _opened(where, raw)
    names = _cut(shorter)
    if names:
        shorter, _ = fitting(where, shorter, shown)
        if _same(shorter(shown), module(shown), names):
            module = shorter
            notes.append(note_on_cut(where, names, data, module(shown)))
    return Network(
        module=module,
        sha256=hashlib.sha256(raw).hexdigest(),
        family="torchscript",
        builder="torchscript",
        notes=tuple(notes),
    )


def _other(raw: bytes) -> str:
    """Return what a file is instead."""
    if is_exported(raw):
        return "got a file of torch.export: name it exported:FILE(run_code=True)"
    if raw.startswith((b"PK", b"\x80")):
        return (
            "got a pickle of torch.save, which may run code when it is read: script the network "
            "with torch.jit.trace, or save its weights as safetensors"
        )
    return "got one that is cut, damaged or of another kind"


def _opened(where: str, raw: bytes) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates TorchScript
            module: nn.Module = torch.jit.load(io.BytesIO(raw), map_location="cpu")
    except Exception as error:  # torch raises RuntimeError, and others for a damaged archive
        raise VictimError(
            f"{where}: expected a TorchScript archive that torch {torch.__version__} reads, got: "
            f"{first_line(error)}"
        ) from None
    return module


def _cut(module: Any) -> list[str]:  # noqa: ANN401 - a script module
    """Let a script return what goes into its last softmax or sigmoid, and return what was cut.

    Several in a row are cut, and returned in the order in which they are computed. The graph of the
    method is changed before it first runs.
    """
    names: list[str] = []
    with suppress(AttributeError, RuntimeError, TypeError):  # these are torch's private functions
        graph = module._c._get_method("forward").graph
        torch._C._jit_pass_inline(graph)
        while len(outputs := list(graph.outputs())) == 1:
            node = outputs[0].node()
            if node.kind() not in _SQUASHES or len(outputs[0].uses()) != 1:
                break
            node.output().replaceAllUsesWith(next(iter(node.inputs())))
            names.insert(0, _SQUASHES[node.kind()])
            node.destroy()
    return names


def _same(logits: Any, p: Any, names: list[str]) -> bool:  # noqa: ANN401
    """Return whether the logits before squashing functions give their outputs."""
    if not isinstance(logits, Tensor) or not isinstance(p, Tensor):
        return False
    return torch.allclose(squashed(logits, names), p, atol=1e-4)


def load_exported(source: Deployed, data: DatasetCard, shown: Images) -> Network:
    """Return the network in a file of torch.export, which torch can only read by running its code.

    Args:
        source: the file; its parameter `run_code=True` allows it.
        data: states channels, size and classes.
        shown: `(b, c, *s)` images of the dataset, normalised.

    Raises:
        VictimError: it is not allowed; the file is none of torch.export; or the network does not
            read such images.
    """
    check_parameters("exported", source.parameters, ("run_code",))
    where = source.path.name
    raw = content(source.path)
    if not is_exported(raw):
        raise VictimError(f"{where}: expected a file of torch.export, {_other_export(raw)}")
    if source.parameters.get("run_code") is not True:
        raise VictimError(
            f"{where}: expected run_code=True for a file of torch.export, which torch unpickles "
            "and which may run code: if you trust it, write "
            f"'exported:{source.place}(run_code=True)'; an ONNX or TorchScript file needs no trust"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(io.BytesIO(raw))
            module = _module_of(program)
    except Exception as error:  # a damaged archive may raise anything
        raise VictimError(
            f"{where}: expected a file of torch.export that torch {torch.__version__} reads, got: "
            f"{first_line(error)}"
        ) from None
    batch = _batch_of(program)
    network, notes = fitting(where, module, shown, batch)
    before = network(shown)
    names = _cut_graph(module)
    if names and _same(network(shown), before, names):
        notes.append(note_on_cut(where, names, data, network(shown)))
    elif names:
        network, notes = fitting(where, _module_of(program), shown, batch)
    return Network(
        module=network,
        sha256=hashlib.sha256(raw).hexdigest(),
        family="exported",
        builder="exported",
        notes=(*notes, "its code was run, as run_code=True allows"),
    )


def _other_export(raw: bytes) -> str:
    return "got a TorchScript archive: torchscript:FILE" if is_script(raw) else _other(raw)


def _module_of(program: Any) -> fx.GraphModule:  # noqa: ANN401 - an ExportedProgram
    """Return the module of a program; it has one mode, and so is asked for no other."""
    module: fx.GraphModule = program.module()
    for part in module.modules():
        part.training = False
        for name in ("train", "eval"):
            setattr(part, name, types.MethodType(_in_its_mode, part))
    return module


def _in_its_mode(module: nn.Module, mode: bool = False) -> nn.Module:
    return module


def _batch_of(program: Any) -> int | None:  # noqa: ANN401 - an ExportedProgram
    """Return the number of images that a program takes at once; None = any."""
    users = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in users and "val" in node.meta:
            first = node.meta["val"].shape[0]
            return first if isinstance(first, int) else None
    return None


def _cut_graph(module: fx.GraphModule) -> list[str]:
    """Let a graph return what goes into its last softmax or sigmoid, and return what was cut.

    Several in a row are cut, and returned in the order in which they are computed.
    """
    output = next(node for node in reversed(module.graph.nodes) if node.op == "output")
    names: list[str] = []
    while len(output.all_input_nodes) == 1:
        (last,) = output.all_input_nodes
        target = str(last.target).rpartition(".")[0].replace(".", "::")
        if last.op != "call_function" or len(last.users) != 1 or target not in _SQUASHES:
            break
        names.insert(0, _SQUASHES[target])
        last.replace_all_uses_with(last.args[0])
        module.graph.erase_node(last)
    if names:
        module.recompile()
    return names
