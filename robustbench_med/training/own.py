"""Train a model on a person's own data: the card, and the code that the card needs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustbench_med import registry, spec, user_code
from robustbench_med.cards import ModelCard, Recipe
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.errors import SpecError, VictimError
from robustbench_med.models.card_file import fits_of
from robustbench_med.models.load import untrained
from robustbench_med.models.options import OPTIONS, read_statistics, read_steps, read_window
from robustbench_med.models.preprocess import seen_by_network
from robustbench_med.models.probing import Expected, probe
from robustbench_med.training.adversarial_setup import adversarial_setup
from robustbench_med.training.train import HUB, defense_code, start_weights

STEM = "card"  # the files of such a training are card.json and card.safetensors
# for a network of the usual size on a few hundred to a few thousand images: the validation stops it
RECIPE = Recipe(
    epochs=40,
    batch=32,
    lr=1e-3,
    augment=("shift", "rotate", "contrast"),
    patience=8,
)
IMAGENET = 3e-4  # a lower rate keeps what the starting weights have learnt


def own_card(
    model: str,
    data: Dataset,
    dataset: str,
    out: Path,
    *,
    title: str = "",
    defense: str = "",
    changes: Mapping[str, Any],
) -> ModelCard:
    """Return the card of a model to train, after checking all that can be checked before.

    Args:
        model: spec of the architecture as `--model` takes it; `weights` or `pretrained=True` are
            what the training starts from, `mean` and `std` the normalisation.
        data: the data.
        dataset: their name or path.
        out: the folder of the card; a Python file of the user's own is copied there.
        title: the name on boards; by default the model's and the defense's.
        defense: spec of a defense that trains; empty for none.
        changes: fields that replace those of the recipe.

    Raises:
        BenchError: the model, the defense, the recipe or a split of the data does not fit.
    """
    if data.card.sizes_differ:
        raise SpecError(
            f"{dataset}: expected images of one size to train on, got images that keep their own: "
            'state size = [h, w] in place of size = "native" in the card file'
        )
    for split in ("train", "val", "test"):  # a missing one must not end hours of training
        data.batch(split, n=2)
    name, parameters = spec.parse(model)
    options = {key: parameters[key] for key in OPTIONS if key in parameters}
    inner = {key: value for key, value in parameters.items() if key not in OPTIONS}
    start = _start_of(options, name)
    values = RECIPE.model_dump() | ({"lr": IMAGENET} if start else {}) | {"start": start}
    values |= dict(changes) | {"defense": _full_spec(defense)}
    recipe = registry.validate(Recipe, values, "train")
    if recipe.accumulate > max(1, recipe.batch // 2):
        raise SpecError(
            f"expected parts of at least 2 images, got a batch of {recipe.batch} in "
            f"{recipe.accumulate} parts"
        )
    if recipe.start not in ("", HUB):
        start_weights(recipe.start)
    steps = read_steps(options, data.card)
    window, overlap = read_window(options, seen_by_network(data.card, steps))
    if defense:
        adversarial_setup(recipe.defense, data.card, windowed=window is not None)
    builder, code = _with_code(name, inner, out)
    plain = name.rpartition(":")[2]
    trained_with = f", {spec.parse(defense).name.rpartition(':')[2]}" if defense else ""
    slug = re.sub(r"\W+", "_", f"{data.card.name}_{plain}{trained_with}").strip("_").lower()
    card = ModelCard(
        name=slug,
        title=title or f"{plain}{trained_with}",
        named=bool(title),
        summary=f"{model} trained on {dataset}{f' with {recipe.defense}' if defense else ''}.",
        family=plain.partition("_")[0].lower(),
        dataset=dataset,
        builder=str(builder),
        code=code,
        preprocess="" if steps is None else steps.text,
        recipe=recipe,
        window=window,
        overlap=overlap,
        fits=fits_of(data.card),
        notes=_notes(recipe.defense),
        undefended=recipe.start if defense and recipe.start.endswith(".json") else "",
    )
    return _checked(card, data, options, out)


def _start_of(options: Mapping[str, Any], name: str) -> str:
    """Return what a training starts from, by the parameters of the model's spec."""
    start = options.get("weights", "")
    if not isinstance(start, str):
        raise SpecError(f"expected weights='FILE.safetensors', got {start!r}")
    if not options.get("pretrained"):
        return start
    if start or not name.startswith("timm:"):
        what = "weights or pretrained=True" if start else "pretrained=True with timm:NAME alone"
        raise SpecError(f"expected {what}, got {name} with {', '.join(options)}")
    return HUB


def _full_spec(defense: str) -> str:
    return str(spec.parse(defense)) if defense else ""


def _notes(defense: str) -> tuple[str, ...]:
    """Return a note on a defense whose code is not part of this project."""
    code = defense_code(defense)
    if not code:
        return ()
    name = spec.parse(defense).name
    return (f"trained with code from outside this project: {name} (SHA-256 {code[:12]}...)",)


def _with_code(name: str, parameters: dict[str, Any], out: Path) -> tuple[spec.Spec, str]:
    """Return the builder with a path relative to the card, and the hash of its code.

    The Python file and the modules beside it that it imports are copied to the card.

    Raises:
        SpecError: the file cannot be executed.
    """
    parts = user_code.split(name)
    if parts is None:
        return spec.Spec(name, parameters), ""
    sha256 = user_code.load(name).sha256
    home = parts[0].expanduser().resolve().parent
    for file in user_code.files_of(name):
        target = out / file.relative_to(home)
        if target.resolve() != file:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    return spec.Spec(f"{parts[0].name}:{parts[1]}", parameters), sha256


def _checked(card: ModelCard, data: Dataset, options: Mapping[str, Any], out: Path) -> ModelCard:
    """Return the card with mean and std, after forwarding two images through the network.

    Raises:
        VictimError: the network does not read such images, or returns no logits for them.
    """
    victim = untrained(card, data.card, folder=out)
    seen = seen_by_network(data.card, victim.contract.preprocess)
    default = getattr(victim.module, "pretrained_cfg", {})
    mean, std = read_statistics(options, default, seen)
    masks = data.card.task == "segmentation"
    victim.check(data.batch("train", n=2).x, data.card.outputs, masks=masks)
    expected = Expected(data.card.outputs, masks=masks, findings=data.card.task == "multi_label")
    reading, _ = probe(victim.network, expected)
    if reading.link != "identity" or reading.path:
        got = "probabilities" if reading.link != "identity" else f"outputs at {reading.path}"
        raise VictimError(
            f"{card.builder}: expected a network that returns logits alone, got {got}: leave out "
            "its last sigmoid or softmax, and return one tensor"
        )
    return card.model_copy(update={"mean": mean, "std": std})
