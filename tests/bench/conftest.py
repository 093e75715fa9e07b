"""Attacks that a test registers for itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from robustbench_med import registry
from robustbench_med.declarations import attack

Plant = Callable[..., str]


@pytest.fixture
def plant() -> Iterator[Plant]:
    """Register functions as attacks until the end of the test; each call returns the name."""
    with ExitStack() as stack:

        def register(function: Callable[..., Any], **fields: Any) -> str:  # noqa: ANN401
            usual = {"title": "Planted", "norms": ("linf", "l2"), "schedule": "ascend"}
            declare = attack(**{**usual, "cost": lambda: 1, **fields})
            declared = declare(function)
            stack.enter_context(registry.register("attacks", declared))
            return declared.__name__

        yield register
