"""Metrics of MAITE beside ours: computed from the answers that the records hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from robustbench_med.bench.record import Stored
from robustbench_med.errors import SpecError
from robustbench_med.score_frame import WORST
from robustbench_med.user_code import run
from robustbench_med.worst_case import rung_of


def check_metrics(metrics: Sequence[Any]) -> list[str]:
    """Return the names of metrics, each once.

    Raises:
        SpecError: one of them is no Metric: `metadata`, `reset`, `update` and `compute`.
    """
    names: list[str] = []
    for metric in metrics:
        missing = [name for name in ("reset", "update", "compute") if not hasattr(metric, name)]
        if missing:
            raise SpecError(
                f"expected a MAITE Metric with reset, update and compute, got "
                f"{type(metric).__name__} without {missing[0]}"
            )
        metadata = getattr(metric, "metadata", {})
        named = metadata.get("id", "") if isinstance(metadata, Mapping) else ""
        names.append(str(named or type(metric).__name__))
    return [f"{name} #{i + 1}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def extra_columns(
    metrics: Sequence[Any], columns: Mapping[str, Sequence[Stored]], radii: Sequence[float]
) -> dict[tuple[str, str], list[float]]:
    """Return what metrics compute of the answers under each attack, clean and at each radius.

    Args:
        metrics: MAITE Metrics for labels or findings. Predictions are probabilities `(k,)`, targets
            one-hot or 0 and 1 a finding, and the metadata has `id` and, where known, `patient`.
        columns: a name -> the records of which the worst answer of each image counts.
        radii: 0 first, then the radii.

    Returns:
        (name, "METRIC.KEY") -> a number for each radius; NaN where nothing ran.

    Raises:
        SpecError: the data has masks, or a metric fails or computes no numbers.
    """
    numbers: dict[tuple[str, str], list[float]] = {}
    first = next(iter(columns.values()))[0].record
    if first.dataset_card.task == "segmentation":
        raise SpecError("expected labels or findings for metrics=..., got masks: MAITE has none")
    k = len(first.dataset_card.classes)
    names = check_metrics(metrics)
    for column, records in columns.items():
        for i, eps in enumerate(radii):
            rows = _answers(records, eps, exact=column != WORST)
            if rows is None:
                continue
            for name, metric in zip(names, metrics, strict=True):
                for key, value in _computed(name, metric, rows, k).items():
                    found = numbers.setdefault(
                        (column, f"{name}.{key}"), [float("nan")] * len(radii)
                    )
                    found[i] = value
    return numbers


def _answers(records: Sequence[Stored], eps: float, *, exact: bool) -> pd.DataFrame | None:
    """Return the row of each image at a radius, of the attack under which it does worst.

    Args:
        records: of one or several attacks.
        eps: the radius; 0 is clean.
        exact: whether only attacks with this radius count, or each with its largest one up to it.
    """
    tables = []
    for stored in records:
        ladder = (0.0, *stored.record.case.ladder)
        up_to = [i for i, radius in enumerate(ladder) if radius <= eps * (1 + 1e-6)]
        at = rung_of(eps, ladder) if exact and eps else up_to[-1]
        if at >= 0:
            samples = stored.samples
            tables.append(samples[samples["eps"] == ladder[at]].reset_index(drop=True))
    if not tables:
        return None
    joined = pd.concat(tables, ignore_index=True)
    joined["_correct"] = [float(np.mean(value)) for value in joined["correct"]]
    return joined.sort_values("_correct", kind="stable").drop_duplicates("sample").sort_index()


def _computed(name: str, metric: Any, rows: pd.DataFrame, k: int) -> dict[str, float]:  # noqa: ANN401
    predictions = [np.asarray(scores, dtype=np.float64) for scores in rows["scores"]]
    predictions = [np.array([1 - p[0], p[0]]) if len(p) < k else p for p in predictions]
    truth = [np.asarray(value) for value in rows["truth"]]
    targets = [np.eye(k)[int(y)] if y.ndim == 0 else y.astype(np.float64) for y in truth]
    about = [{"id": str(sample)} for sample in rows["sample"]]
    for datum, patient in zip(about, rows["patient"], strict=True):
        if isinstance(patient, str) and patient:
            datum["patient"] = patient

    def compute() -> Any:  # noqa: ANN401
        metric.reset()
        metric.update(predictions, targets, about)
        return metric.compute()

    result = run(f"metric {name}", compute, SpecError)
    try:
        return {str(key): _number(value) for key, value in dict(result).items()}
    except (TypeError, ValueError):
        raise SpecError(f"metric {name}: expected a number for each key, got {result}") from None


def _number(value: Any) -> float:  # noqa: ANN401 - a number, or an array or tensor of one
    array = np.asarray(value, dtype=np.float64)
    if array.size != 1:
        raise ValueError
    return float(array.reshape(()))
