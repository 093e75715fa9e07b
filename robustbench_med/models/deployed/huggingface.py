"""Read a folder of Hugging Face transformers: a classifier or a network for masks.

Only local files are read, only safetensors, and no code of the folder is executed.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_med.cards import DatasetCard
from robustbench_med.errors import VictimError
from robustbench_med.models.deployed.network import (
    Network,
    check_parameters,
    first_line,
    library,
    ordered,
    quiet,
    read_json,
)
from robustbench_med.models.deployed.source import Deployed
from robustbench_med.types import Images

_CONFIG, _PROCESSOR = "config.json", "preprocessor_config.json"
_GREY = 1 / 255  # the factor by which processors scale grey levels to [0,1]


class Answering(nn.Module):
    """A model of transformers as a module that returns logits.

    Args:
        model: the model.
        size: the size of masks; None for labels.
    """

    def __init__(self, model: nn.Module, size: tuple[int, ...] | None) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, x: Images) -> Tensor:
        """Return logits `(b, k)`, or `(b, k, *s)` at the size of the images, as its processor."""
        logits: Tensor = self.model(pixel_values=x).logits
        if self.size is None or tuple(logits.shape[2:]) == self.size:
            return logits
        return nn.functional.interpolate(
            logits, size=self.size, mode="bilinear", align_corners=False
        )


def huggingface_settings(source: Deployed, seen: DatasetCard) -> dict[str, Any]:
    """Return the steps, mean and std of a folder's processor, for images of a dataset.

    Raises:
        VictimError: the folder has no readable processor, or one with unknown steps.
    """
    path = source.path / _PROCESSOR
    if not path.is_file():
        return {}
    processor, where = read_json(path), f"{source.path.name}/{_PROCESSOR}"
    config = read_json(source.path / _CONFIG)
    steps = _sizing(processor, seen.size)
    if seen.channels == 1 and int(config.get("num_channels", 3)) > 1:
        steps.append(f"stack({int(config.get('num_channels', 3))})")
    settings: dict[str, Any] = {"preprocess": ", ".join(steps)}
    factor = float(processor.get("rescale_factor", _GREY))
    if not processor.get("do_rescale", True):
        factor = 1.0
    scale = factor * 255
    if not math.isclose(scale, 1, rel_tol=1e-3):
        offset = -1.0 if processor.get("rescale_offset") else 0.0
        steps.append(f"scale({offset:g}, {offset + scale:g})")
        settings["preprocess"] = ", ".join(steps)
    if processor.get("do_normalize", True) and "image_mean" in processor:
        settings |= {"mean": processor["image_mean"], "std": processor["image_std"]}
    if processor.get("do_pad") and "pad_size" in processor:
        raise VictimError(f"{where}: expected a processor without padding, got pad_size")
    return settings


def _sizing(processor: dict[str, Any], size: tuple[int, ...]) -> list[str]:
    """Return the steps that resize and crop; none if the images have that size already."""
    stated = processor.get("size") if processor.get("do_resize", True) else None
    crop = processor.get("crop_size") if processor.get("do_center_crop") else None
    cropped = _sides(crop)
    resized = _sides(stated)
    shorter = stated.get("shortest_edge") if isinstance(stated, dict) else None
    fraction = processor.get("crop_pct")
    if shorter and fraction and shorter < 384:  # as ConvNeXT's processor does
        cropped, shorter = (shorter, shorter), int(shorter / fraction)
    elif shorter and fraction:
        resized, shorter = (shorter, shorter), None
    target = cropped or resized
    if target is not None and tuple(size) == target:
        return []
    steps = []
    if shorter and min(size) != shorter:
        steps.append(f"resize({int(shorter)})")
    elif resized is not None and tuple(size) != resized:
        steps.append(f"resize({resized[0]}, {resized[1]})")
    if cropped is not None:
        steps.append(f"crop({cropped[0]}, {cropped[1]})")
    return steps


def _sides(stated: Any) -> tuple[int, int] | None:  # noqa: ANN401 - of a file
    if isinstance(stated, int):
        return stated, stated
    if isinstance(stated, dict) and {"height", "width"} <= stated.keys():
        return int(stated["height"]), int(stated["width"])
    return None


def load_huggingface(source: Deployed, data: DatasetCard, shown: Images) -> Network:
    """Return the network in a folder of transformers.

    Args:
        source: the folder.
        data: states channels, size and classes.
        shown: `(b, c, *s)` images of the dataset, normalised.

    Raises:
        NotInstalledError: transformers is missing.
        VictimError: the folder is incomplete, needs code of its own or a pickle, or its network is
            of another kind.
    """
    check_parameters("hf", source.parameters)
    folder, where = source.path, source.path.name
    config = read_json(folder / _CONFIG)
    if config.get("auto_map"):
        raise VictimError(
            f"{where}: expected a network of transformers, got one that brings its own code "
            "(auto_map), which is not executed: use FILE.py:FACTORY"
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        got = f"{pickles[0]}, a pickle: save it with safe_serialization=True" if pickles else "none"
        raise VictimError(f"{where}: expected model.safetensors, got {got}")
    model = _model(where, folder, data)
    size = data.size if data.task == "segmentation" else None
    names = getattr(model.config, "id2label", None) or {}
    module, notes = ordered(Answering(model, size), [names[key] for key in sorted(names)], data)
    digest = hashlib.sha256()
    for path in (folder / _CONFIG, *files):
        digest.update(path.read_bytes())
    return Network(
        module=module,
        sha256=digest.hexdigest(),
        family=str(config.get("model_type", "transformers")),
        builder=f"hf({config.get('model_type')}, {notes})",
        notes=tuple(notes),
    )


def _model(where: str, folder: Path, data: DatasetCard) -> Any:  # noqa: ANN401
    transformers = library("transformers", f"hf:{where}")
    masks = data.task == "segmentation"
    kind = "AutoModelForSemanticSegmentation" if masks else "AutoModelForImageClassification"
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            model, loading = getattr(transformers, kind).from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=torch.float32,
            )
    except Exception as error:  # it raises errors of any type
        raise VictimError(
            f"{where}: expected a network that {kind} reads, got: {first_line(error)}"
        ) from None
    lacking = sorted(loading.get("missing_keys", ()))
    if lacking:
        raise VictimError(
            f"{where}: expected the weights of the whole network, got none for {lacking[0]!r}: a "
            "head without weights would answer at random"
        )
    return model.eval()
