"""What two runs of one case have in common."""

from __future__ import annotations

import json

from robustbench_med.bench.record import Stored


def lasting(stored: Stored) -> dict[str, object]:
    """Return the fields of a record that do not say when, where and how fast it was made."""
    values: dict[str, object] = json.loads(stored.record.model_dump_json(exclude={"provenance"}))
    cost = values["cost"]
    if isinstance(cost, dict):
        del cost["seconds"], cost["peak_memory_mib"], cost["relative_forward_time"]
    return values
