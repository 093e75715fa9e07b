"""Read a MONAI bundle: its network from an allow-list, its weights, and the steps around it.

The configuration of a bundle is a program: `_target_` names any Python function, and `$` starts an
expression. Neither is executed here. The network must be one of `monai.networks.nets`, its
arguments must be literals or references, and of the steps before and after it those that are known
are read; others are refused.
"""

from __future__ import annotations

import ast
import hashlib
import json
import operator
from pathlib import Path
from typing import Any

from torch import nn

from robustbench_med.cards import DatasetCard
from robustbench_med.errors import VictimError
from robustbench_med.models import weights
from robustbench_med.models.deployed.bundle_steps import Standardised, read_steps
from robustbench_med.models.deployed.network import (
    Network,
    check_parameters,
    first_line,
    quiet,
    read_json,
)
from robustbench_med.models.deployed.source import Deployed
from robustbench_med.models.deployed.torch_file import load_script
from robustbench_med.models.sliding import Sliding
from robustbench_med.types import Images

NETWORKS = (
    *("AttentionUnet", "BasicUNet", "BasicUNetPlusPlus", "DenseNet", "DenseNet121", "DenseNet169"),
    *("DenseNet201", "DynUNet", "EfficientNetBN", "FlexibleUNet", "HighResNet", "MedNeXt"),
    *("ResNet", "SegResNet", "SegResNetDS", "SENet", "SwinUNETR", "UNETR", "UNet", "ViT", "VNet"),
    *("resnet10", "resnet18", "resnet34", "resnet50"),
)
_NAMES = ("inference", "evaluate", "train")  # of configurations, the first that there is
_OPERATORS: dict[type[ast.AST], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.USub: operator.neg,
}
_DEEPEST = 20  # references that lead to one another


class Bundle:
    """The configuration of a bundle, as data.

    Args:
        folder: the folder of the bundle.

    Raises:
        VictimError: there is no configuration, or it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, folder.name
        self.config = self._read()

    def _read(self) -> dict[str, Any]:
        for name in _NAMES:
            path = self.folder / "configs" / f"{name}.json"
            if path.is_file():
                return read_json(path)
            for ending in ("yaml", "yml"):
                path = path.with_suffix(f".{ending}")
                if path.is_file():
                    return _read_yaml(path)
        raise VictimError(
            f"{self.where}: expected a MONAI bundle with configs/inference.json or .yaml, got none"
        )

    def literal(self, value: Any, depth: int = 0) -> Any:  # noqa: ANN401
        """Return a value of the configuration with its references and arithmetic resolved.

        Raises:
            VictimError: it is code, or a reference leads nowhere.
        """
        if depth > _DEEPEST:
            raise VictimError(f"{self.where}: expected references that end, got a circle")
        if isinstance(value, dict):
            return {key: self.literal(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.literal(item, depth + 1) for item in value]
        if isinstance(value, str) and value.startswith("@"):
            return self.literal(self.at(value[1:]), depth + 1)
        if isinstance(value, str) and value.startswith("$"):
            return self._computed(value, depth)
        return value

    def at(self, name: str) -> Any:  # noqa: ANN401
        """Return the part of the configuration that a reference names, as it is written.

        Raises:
            VictimError: there is none.
        """
        value: Any = self.config
        for key in name.replace("::", "#").split("#"):
            if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            elif isinstance(value, dict) and key in value:
                value = value[key]
            else:
                raise VictimError(f"{self.where}: expected {name!r} in the configuration, got none")
        return value

    def _computed(self, text: str, depth: int) -> Any:  # noqa: ANN401
        """Return the value of an expression of numbers and references; nothing is executed."""
        names: dict[str, str] = {}
        plain = text[1:]
        for name in sorted(_references(plain), key=len, reverse=True):
            names[f"ref{len(names)}_"] = name
            plain = plain.replace(f"@{name}", f"ref{len(names) - 1}_")
        try:
            node = ast.parse(plain.strip(), mode="eval").body
            return self._value(node, names, depth)
        except (SyntaxError, TypeError, ValueError, ZeroDivisionError, RecursionError):
            raise VictimError(
                f"{self.where}: expected numbers and references in a network's arguments, got the "
                f"expression {text[:60]!r}, which is not executed: write its value instead"
            ) from None

    def _value(self, node: ast.expr, names: dict[str, str], depth: int) -> Any:  # noqa: ANN401
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.List | ast.Tuple):
            return [self._value(item, names, depth) for item in node.elts]
        if isinstance(node, ast.Name) and node.id in names:
            return self.literal(self.at(names[node.id]), depth + 1)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = (self._value(n, names, depth) for n in (node.left, node.right))
            if all(isinstance(side, int | float) for side in (left, right)):
                return _OPERATORS[type(node.op)](left, right)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return _OPERATORS[ast.USub](self._value(node.operand, names, depth))
        raise ValueError

    def part(self, *names: str) -> Any:  # noqa: ANN401
        """Return the first part of the configuration that there is, or None."""
        return next((self.config[name] for name in names if name in self.config), None)


def _references(text: str) -> set[str]:
    found, name = set[str](), None
    for sign in f"{text} ":
        if name is not None and (sign.isalnum() or sign in "_#:"):
            name += sign
            continue
        if name:
            found.add(name)
        name = "" if sign == "@" else None
    return found


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]  # of monai's own requirements

    where = f"{path.parent.name}/{path.name}"
    if path.stat().st_size > 2**20:
        raise VictimError(f"{where}: expected at most 1 MiB, got more")
    text = path.read_text(encoding="utf-8", errors="replace")
    if "&" in text and "*" in text:  # aliases of aliases fill the memory
        raise VictimError(f"{where}: expected YAML without anchors and aliases, got some")
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise VictimError(f"{where}: expected YAML, got: {first_line(error)}") from None
    if not isinstance(values, dict):
        raise VictimError(f"{where}: expected YAML with a mapping, got {type(values).__name__}")
    return values


def bundle_settings(source: Deployed, seen: DatasetCard) -> dict[str, Any]:
    """Return the steps before a bundle's network, and its window.

    Raises:
        VictimError: the configuration cannot be read, or has steps that are not known.
    """
    bundle = Bundle(source.path)
    if "preprocess" in source.parameters:
        return {}
    return read_steps(bundle, seen).settings


def load_bundle(source: Deployed, data: DatasetCard, shown: Images) -> Network:
    """Return the network of a MONAI bundle.

    Args:
        source: the folder.
        data: states channels, size and classes.
        shown: `(b, c, *s)` images of the dataset, normalised.

    Raises:
        VictimError: the bundle is incomplete; its network is none of the allow-list; its weights
            are a pickle; or a step before or after it is not known.
    """
    check_parameters("bundle", source.parameters, ("unpickle",))
    bundle = Bundle(source.path)
    steps = read_steps(bundle, data, known="preprocess" not in source.parameters)
    module, sha256, how = _network(source, bundle, data, shown)
    answers = [sha256, _network_text(bundle, how), repr(steps.statistics), repr(steps.window)]
    answers += [repr(steps.overlap), steps.blend, ", ".join(steps.chain)]
    notes = list(steps.notes)
    if "preprocess" in source.parameters:
        notes.append("the bundle's own steps before the network are replaced by preprocess=")
    if steps.window is not None and "window" not in source.parameters:
        module = Sliding(module, window=steps.window, overlap=steps.overlap, mode=steps.blend)
        sides = " x ".join(map(str, steps.window))
        notes.append(f"the network reads windows of {sides}, as the bundle's inferer")
    if steps.statistics is not None and "preprocess" not in source.parameters:
        module = Standardised(module, steps.statistics)
    digest = hashlib.sha256("\n".join([*answers, *notes]).encode()).hexdigest()
    return Network(
        module=module, sha256=digest, family="monai", builder=f"bundle({how})", notes=tuple(notes)
    )


def _network(
    source: Deployed, bundle: Bundle, data: DatasetCard, shown: Images
) -> tuple[nn.Module, str, str]:
    """Return the network, the hash of its file, and a word on how it was made."""
    models = bundle.folder / "models"
    for name in ("model.ts", "model.torchscript"):
        if (models / name).is_file():
            path = models / name
            network = load_script(Deployed("torchscript", str(path), {}), data, shown)
            return network.module, network.sha256, "torchscript"
    files = sorted(models.glob("*.safetensors"))
    unpickle = source.parameters.get("unpickle") is True
    if not files and unpickle:
        files = [path for path in (models / "model.pt", models / "model.pth") if path.is_file()]
    if not files:
        others = sorted(path.name for path in models.glob("model.*"))
        got = f"{others[0]}: {_ADVICE}" if others else "none"
        raise VictimError(f"{bundle.where}: expected models/model.safetensors, got {got}")
    module = _built(bundle)
    path = models / "model.safetensors" if len(files) > 1 else files[0]
    sha256 = weights.read(module, path, unpickle=unpickle)
    return module, sha256, type(module).__name__


_ADVICE = (
    "a pickle of torch.save may run code when it is read; unpickle=True reads its tensors alone, "
    "or save its state dict as models/model.safetensors with safetensors.torch.save_file"
)


def _network_text(bundle: Bundle, how: str) -> str:
    """Return all that decides what the weights compute; an archive holds it itself."""
    if how == "torchscript":
        return how
    name, arguments = _stated(bundle)
    return f"{name}({json.dumps(arguments, sort_keys=True, default=str)})"


def _stated(bundle: Bundle) -> tuple[str, dict[str, Any]]:
    """Return the name of the network that a bundle states, and its arguments."""
    stated = bundle.part("network_def", "net_def", "network", "net")
    if not isinstance(stated, dict) or "_target_" not in stated:
        raise VictimError(
            f"{bundle.where}: expected network_def with a _target_ in the configuration, got none"
        )
    target = str(stated["_target_"])
    name = target.rpartition(".")[2]
    if name not in NETWORKS or not (target == name or target.startswith("monai.networks.nets.")):
        raise VictimError(
            f"{bundle.where}: expected a network of monai.networks.nets in {', '.join(NETWORKS)}, "
            f"got {target!r}, which is not imported: use FILE.py:FACTORY"
        )
    arguments = {
        key: bundle.literal(value)
        for key, value in stated.items()
        if not (key.startswith("_") and key.endswith("_"))
    }
    if arguments.get("pretrained"):
        arguments["pretrained"] = False  # its weights are in the bundle, and nothing is downloaded
    return name, arguments


def _built(bundle: Bundle) -> nn.Module:
    name, arguments = _stated(bundle)
    from monai.networks import nets

    try:
        with quiet():
            module: nn.Module = getattr(nets, name)(**arguments)
    except Exception as error:  # a network may raise anything for a stranger's arguments
        raise VictimError(f"{bundle.where}: {name}: {first_line(error)}") from None
    return module.eval()
