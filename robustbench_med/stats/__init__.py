"""All statistics of the project: `intervals`, `paired_tests` and `patients`.

This module imports no numerical library, so that commands that only read records start quickly.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Estimate(BaseModel):
    """A value and its 95 % interval; NaN where undefined."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    value: float
    low: float
    high: float


UNDEFINED = Estimate(value=float("nan"), low=float("nan"), high=float("nan"))
