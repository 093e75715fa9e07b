"""The metrics of a record as rows of a table, with their titles and formatted values."""

from __future__ import annotations

from typing import NamedTuple

from robustbench_med.bench.record import Record
from robustbench_med.cards import DatasetCard
from robustbench_med.metrics.segmentation import units
from robustbench_med.stats import Estimate

from ..boards.detectors import COLUMNS
from .score import score_of
from .text import plain
from .threat_model import class_words

_ATTACK = {
    "attack_success": ("Attack success, %", "percent"),
    **{name: (f"Detector: {label}", kind) for name, (label, kind) in COLUMNS.items()},
    "false_alarms": ("Detector: false alarms per 1,000", "count"),
    "flips_to_normal": ("Flips disease → normal, %", "percent"),
    "flips_to_disease": ("Flips normal → disease, %", "percent"),
    "ssim": ("SSIM", "unit"),
    "psnr": ("PSNR, dB", "plain"),
    "l2": ("L2 used", "unit"),
    "linf": ("L∞ used, /255", "grey"),
}
# metric of a record -> its title in a table and the format of its value
_LABELS: dict[str, tuple[str, str]] = {
    "accuracy": ("Accuracy, %", "percent"),
    "balanced_accuracy": ("Balanced accuracy, %", "percent"),
    "sensitivity": ("Sensitivity, %", "percent"),
    "specificity": ("Specificity, %", "percent"),
    "auc": ("AUC", "unit"),
    "f1": ("F1", "unit"),
    **_ATTACK,
}
_FINE = {"ml": "fine", "mm": "plain", "px": "plain"}  # unit -> format of a length or volume


class MetricRow(NamedTuple):
    """A metric at every radius.

    Attributes:
        region: index of the metric's region in the card; None for a metric of the whole image.
        cells: one estimate for each rung; None where the record has none.
    """

    label: str
    kind: str
    region: int | None
    cells: tuple[Estimate | None, ...]


_SHIFTED = {"attack_success": "Lost by the shift, %"}  # labels that would speak of an attack


def metric_rows(record: Record) -> list[MetricRow]:
    """Return the metrics of a record; for masks also the Dice of each region."""
    card = record.dataset_card
    names = {name for rung in record.rungs for name in rung.metrics}
    labels: list[tuple[str, str, str, int | None]] = [
        (name, label, kind, None) for name, (label, kind) in _labels(card).items()
    ]
    if card.task == "segmentation" and len(card.parts) > 1:
        after = next(i for i, (name, *_) in enumerate(labels) if name == "iou")
        labels[after:after] = [
            (f"dice[{part}]", class_words(part), "unit", index)
            for index, part in enumerate(card.parts)
        ]
    if record.case.threat == "shift":
        labels = [(n, _SHIFTED.get(n, label), kind, i) for n, label, kind, i in labels]
    return [
        MetricRow(label, kind, index, tuple(rung.metrics.get(name) for rung in record.rungs))
        for name, label, kind, index in labels
        if name in names
    ]


def _labels(card: DatasetCard) -> dict[str, tuple[str, str]]:
    if card.task != "segmentation":
        return _LABELS
    unit = units(card.spacing, len(card.size))
    length, volume = unit["hd95"], unit["volume_error"]
    return {
        "target_dice": ("Target Dice", "unit"),
        "dice": ("Dice", "unit"),
        "iou": ("IoU", "unit"),
        "pixel_accuracy": ("Pixel accuracy, %", "percent"),
        "hd95": (f"HD95, {length}", "plain"),
        "nsd": (f"NSD at {card.tolerance:g} {length}", "unit"),
        "volume_error": (f"Volume error, {volume}", _FINE.get(volume, "plain")),
        "lesion_miss": ("Lesions missed, %", "percent"),
        "false_alarm": ("False alarms, %", "percent"),
        **_ATTACK,
    }


def value_unit(metric: str, card: DatasetCard) -> str:
    """Return the unit of a metric's value as stored in a record; a Dice has no unit.

    >>> from robustbench_med.cards import DatasetCard
    >>> card = DatasetCard(name="x", title="X", modality="CT", task="single_label",
    ...                    classes=("a", "b"), channels=1, size=(8, 8))
    >>> value_unit("accuracy", card), value_unit("psnr", card), value_unit("auc", card)
    ('share', 'dB', '')
    """
    if metric.startswith("universal_"):
        return "share"
    if metric in _VALUE_UNITS:
        return _VALUE_UNITS[metric]
    base = metric.partition("[")[0]
    if card.task == "segmentation" and base in (mask_units := units(card.spacing, len(card.size))):
        return mask_units[base]
    _, kind = _labels(card).get(metric, ("", ""))
    return "share" if kind == "percent" else ""


# in image units, a value lies in [0, 1]
_VALUE_UNITS = {
    "psnr": "dB",
    "l2": "image units",
    "linf": "image units",
    "median_distance": "image units",
    "false_alarms": "per 1,000",
}


def metric_notes(record: Record) -> str:
    """Return notes on how masks are scored, for points that are not obvious; empty for labels."""
    card = record.dataset_card
    if card.task != "segmentation":
        return ""
    three = len(card.size) == 3
    score = score_of(card, record.case.objective)
    success = f"a {score.name} below 0.5 where the clean image has more"
    if score.attacked:
        success = "a target Dice above 0.75"
    return " ".join(
        [
            "Each value is the mean over regions, then over images.",
            "A region that is empty in truth and prediction counts as perfect (Dice, IoU, NSD 1; "
            "HD95 0), and one that is empty in only one of them as the worst possible (0; HD95 the "
            "image's diagonal).",
            "Missed lesions are a share of the lesions that are present, and false alarms a share "
            "of the regions that are absent.",
            f"{'Lost by the shift' if record.case.threat == 'shift' else 'Attack success'} means "
            f"{success}.",
            ""
            if card.spacing
            else f"The size of a {'voxel' if three else 'pixel'} is not known, so distances are in "
            f"{'voxels' if three else 'pixels'} (px), not mm.",
        ]
    ).strip()


def spacing_words(card: DatasetCard) -> str:
    """Return the size of a pixel: "1 × 0.94 × 0.94 mm"."""
    if card.spacing is None:
        return "not known: distances are in pixels"
    return " × ".join(f"{mm:.3g}" for mm in card.spacing) + " mm"


def shape_words(card: DatasetCard) -> str:
    """Return the size of an image and its channels: "64×64 grey", "64×64, 4 channels: T1, T2"."""
    size = card.size_words.replace("x", "×")
    if card.channels == 1:
        return f"{size} grey"
    if card.channels == 3 and not card.channel_names:
        return f"{size} RGB"
    names = ", ".join(map(plain, card.channel_names))
    return f"{size}, {card.channels} channels" + (f": {names}" if names else "")
