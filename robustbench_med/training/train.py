"""Train the model of a card by its seeded recipe, and write its weights and card."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from robustbench_med import registry, spec
from robustbench_med.cards import DatasetCard, DefenseCard, Measured, ModelCard, Recipe
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.devices import device_of_module
from robustbench_med.errors import SpecError
from robustbench_med.files import write_text
from robustbench_med.models import weights
from robustbench_med.models.load import ZOO, stored, untrained
from robustbench_med.models.operating_point import youden
from robustbench_med.models.sliding import bare
from robustbench_med.models.source import resolve_model
from robustbench_med.objectives import make
from robustbench_med.stored_images import select_images
from robustbench_med.training.adversarial_setup import adversarial_setup
from robustbench_med.training.checkpoint import Saved
from robustbench_med.training.estimate import estimate
from robustbench_med.training.first_stage import fit_first, stage_data
from robustbench_med.training.fit import fit
from robustbench_med.training.validation import IMAGES, scores
from robustbench_med.types import Batch, images_at_once
from robustbench_med.victim import Victim, frozen

HUB = "hub"  # a recipe that starts from the weights of timm's hub


def train(
    card: ModelCard,
    data: Dataset,
    out: Path,
    *,
    progress: Callable[[float], None] = lambda _: None,
    log: Callable[[str], None] = lambda _: None,
    announce: Callable[[str], None] | None = None,
    stem: str = "",
    device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
    threads: int | None = 1,
) -> ModelCard:
    """Train the card's model, write weights and card to `out`, and return the card.

    A checkpoint in `out` is written after every epoch and removed at the end; a training that was
    killed continues from it, and ends with exactly the same weights.

    Args:
        card: states the recipe.
        data: the dataset that the card names. The model is fitted on train, validation chooses the
            best epoch and the operating point, and the scores are those of test.
        out: folder for `NAME.safetensors` and `NAME.json`.
        progress: called with the completed fraction, 0..1.
        log: called with a line per epoch, if the recipe has a defense or a patience.
        announce: called before the first epoch with a line on the time and memory of the training,
            which are measured then.
        stem: name of the files in place of the card's name.
        device: where it is trained. Equal runs give equal weights on the CPU only.
        threads: number of threads on the CPU; None = as they are set. The last bits of the weights
            depend on it.

    Raises:
        SpecError: the card has no recipe, or its defense is unknown or does not fit the data.
        CheckpointError: the checkpoint in `out` is damaged or belongs to another training.
        DivergedError: the loss or a weight became NaN or Inf.
    """
    recipe = card.recipe
    if recipe is None:
        raise SpecError(f"expected a card with a recipe, got {card.name}")
    out.mkdir(parents=True, exist_ok=True)
    first = recipe.first
    first_data = None if first is None else stage_data(first, data)
    fingerprint = _fingerprint(card, recipe, data, first_data)
    stem = stem or card.name
    saved = Saved(out / f"{stem}.checkpoint", fingerprint)
    first_saved = Saved(out / f"{stem}.first.checkpoint", fingerprint)
    fraction = 0.0 if first is None else first.epochs / (first.epochs + recipe.epochs)
    with _seeded(recipe.seed, threads):
        victim = untrained(card, data.card, folder=out)
        _start(victim, card, data.card)
        victim.module.to(device)
        batch = half_of(data.batch("train", stored=True), recipe.half).to(device)
        val = data.batch("val", n=IMAGES).to(device)
        if announce is not None:
            window, n_val = card.window, len(val)
            announce(str(estimate(victim, batch, data.card, recipe, window=window, n_val=n_val)))
        if first is not None and first_data is not None:
            fit_first(
                victim,
                first,
                first_data,
                recipe,
                lambda done: progress(fraction * done),
                saved=first_saved,
                log=log,
            )
        fit(
            victim,
            batch,
            data.card,
            recipe,
            lambda done: progress(fraction + (1 - fraction) * done),
            window=card.window,
            val=val,
            saved=saved,
            log=log,
        )
    name = f"{stem}.safetensors"
    sha256 = weights.write(bare(victim.module), out / name)
    # the scores are those of the stored weights, which are rounded
    weights.read(bare(victim.module), out / name, sha256=sha256)
    trained = card.model_copy(
        update={
            "weights": name,
            "sha256": sha256,
            "weights_type": "float16",
            "measured": measure(victim, data),
        }
    )
    write_text(out / f"{stem}.json", trained.model_dump_json(indent=2) + "\n")
    for checkpoint in (saved, first_saved):
        checkpoint.path.unlink(missing_ok=True)
    return trained


def _start(victim: Victim, card: ModelCard, data: DatasetCard) -> None:
    """Load the weights that a recipe starts from into a victim.

    Raises:
        UnknownNameError, VictimError: there are no such weights, or they are of another network.
    """
    assert card.recipe is not None  # noqa: S101 - checked by `train`
    start = card.recipe.start
    if start == HUB:
        hub = untrained(card, data, pretrained=True)
        bare(victim.module).load_state_dict(bare(hub.module).state_dict())
    elif start:
        path, sha256 = start_weights(start)
        weights.read(bare(victim.module), path, sha256=sha256, other_head=True)


def start_weights(start: str) -> tuple[Path, str]:
    """Return the file of the weights that a training starts from, and its SHA-256.

    Args:
        start: a shipped victim, the card of a trained model, or a weights file.

    Raises:
        UnknownNameError, VictimError: there is no such victim or file.
    """
    if start.endswith(".safetensors"):
        path = Path(start).expanduser()
        return path, hashlib.sha256(weights.content(path)).hexdigest()
    source = resolve_model(start)
    if source.card is None:
        raise SpecError(f"expected a victim of the zoo or a card to start from, got {start!r}")
    card, folder = stored(source.card, source.folder or ZOO)
    return folder / card.weights, card.sha256


def half_of(batch: Batch, half: str) -> Batch:
    """Return the images of every other patient; images without patients are their own.

    Args:
        batch: images of a split, in the order of their file.
        half: "first" has the first patient, "second" the second one, "" all.
    """
    if not half:
        return batch
    owners = batch.ids if batch.patients is None else batch.patients
    places = {owner: place for place, owner in enumerate(dict.fromkeys(owners.tolist()))}
    wanted = 0 if half == "first" else 1
    rows = np.array([i for i, owner in enumerate(owners.tolist()) if places[owner] % 2 == wanted])
    patients = None if batch.patients is None else batch.patients[rows]
    return Batch(select_images(batch.x, rows), batch.y[rows], batch.ids[rows], patients)


def defended(card: ModelCard, text: str) -> ModelCard:
    """Return the card of the same model trained with a defense, named CARD_DEFENSE.

    If the zoo has a card of that name, its recipe is used, and the parameters of `text` replace
    those of the recipe. Otherwise the recipe of `card` is used, from fresh weights.

    Raises:
        UnknownNameError: there is no such defense.
        SpecError: the spec cannot be read, or the card has no recipe.
    """
    if card.recipe is None:
        raise SpecError(f"expected a card with a recipe, got {card.name}")
    name, parameters = spec.parse(text)
    title = registry.find("defenses", name).title
    shipped = registry.load("models").get(f"{card.name}_{name}")
    if shipped is not None and shipped.recipe is not None:
        shipped_parameters = spec.parse(shipped.recipe.defense).parameters
        defense = spec.Spec(name, {**shipped_parameters, **parameters})
        recipe = shipped.recipe
        if defense.parameters != shipped_parameters:
            recipe = recipe.model_copy(update={"defense": str(defense)})
        return shipped.model_copy(update={"recipe": recipe})
    return card.model_copy(
        update={
            "name": f"{card.name}_{name}",
            "title": f"{card.title}, {title}",
            "summary": f"{card.name} trained with {text}.",
            "recipe": card.recipe.model_copy(update={"defense": str(spec.Spec(name, parameters))}),
            "undefended": card.name,
            "weights": "",
            "sha256": "",
            "measured": None,
        }
    )


def adjusted(card: ModelCard, changes: Mapping[str, object]) -> ModelCard:
    """Return the card with changed fields of its recipe; without a recipe, the card itself.

    Raises:
        SpecError: a value is out of its range.
    """
    if card.recipe is None or not changes:
        return card
    recipe = registry.validate(Recipe, {**card.recipe.model_dump(), **changes}, card.name)
    return card.model_copy(update={"recipe": recipe})


def check(card: ModelCard) -> None:
    """Raise SpecError unless the card has a recipe whose defense supports its data.

    This is checked before the data are loaded, so that a mistake costs no time.
    """
    if card.recipe is None:
        raise SpecError(f"expected a card with a recipe, got {card.name}")
    if card.recipe.start not in ("", HUB):
        start_weights(card.recipe.start)
    if card.recipe.first is not None:
        registry.find("datasets", card.recipe.first.dataset)
    if card.recipe.defense:
        data: DatasetCard = registry.find("datasets", card.dataset)
        adversarial_setup(card.recipe.defense, data, windowed=card.window is not None)


def _fingerprint(card: ModelCard, recipe: Recipe, data: Dataset, first_data: Dataset | None) -> str:
    """Return the hash of everything that determines the weights: model, recipe and data."""
    ignored = {"title", "summary", "source", "weights", "sha256", "weights_type", "measured"}
    fields = card.model_dump(mode="json", exclude={*ignored, "returns", "output", "notes"})
    start = "" if recipe.start in ("", HUB) else start_weights(recipe.start)[1]
    texts = [json.dumps(fields, sort_keys=True), start, torch.__version__]
    texts += filter(None, [defense_code(recipe.defense)])
    for used in (data, first_data):
        if used is not None:
            texts += [used.arrays(split).fingerprint() for split in ("train", "val")]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def defense_code(defense: str) -> str:
    """Return the SHA-256 of a defense in a file of the user's own; "" for any other."""
    if not defense:
        return ""
    card: DefenseCard = registry.find("defenses", spec.parse(defense).name)
    return card.sha256


def measure(victim: Victim, data: Dataset) -> Measured:
    """Return the victim's scores on the test split at its operating point, and its cost."""
    values = scores_on_test(victim, data)
    with frozen(victim.module):
        device = device_of_module(victim.module)
        cost = _gradient_ms(victim, data.batch("test", stored=True).to(device), data.card)
    return Measured(
        parameters=sum(p.numel() for p in victim.module.parameters()),
        **{name: round(value, 4) for name, value in values.items()},
        gradient_ms=round(cost, 3),
        machine=f"{platform.machine()}, {torch.get_num_threads()} threads"
        if device.type == "cpu"
        else torch.cuda.get_device_name(device),
    )


def scores_on_test(victim: Victim, data: Dataset) -> dict[str, float]:
    """Return the victim's scores on the test split at its operating point."""
    device = device_of_module(victim.module)
    with frozen(victim.module):
        if data.card.task != "segmentation":
            val = data.batch("val", stored=True)
            logits = victim.logits(val.x.to(device)).cpu()
            victim = victim.at(youden(logits, val.y, data.card))
        return scores(victim, data.batch("test", stored=True).to(device), data.card)


@contextmanager
def _seeded(seed: int, threads: int | None) -> Iterator[None]:
    """Seed torch and use so many threads inside the block; restore both after it.

    The order of sums, and with it the last bits of the weights, depends on the number of threads.
    """
    state, before = torch.get_rng_state(), torch.get_num_threads()
    torch.manual_seed(seed)
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_rng_state(state)
        torch.set_num_threads(before)


def _gradient_ms(victim: Victim, batch: Batch, card: DatasetCard) -> float:
    x = batch.x[: images_at_once(card.size)].clone().requires_grad_(True)
    synchronize: Callable[[], None] = (
        torch.cuda.synchronize if x.device.type == "cuda" else lambda: None
    )
    objective = make("untargeted", card.task, card=card)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        torch.autograd.grad(objective(victim(x), batch.y[: len(x)]).loss.sum(), x)
        synchronize()
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds) / len(x)
