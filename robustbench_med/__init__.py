"""A robustness bench for medical image models.

>>> import robustbench_med as rm  # imports neither torch nor anything else that takes time
>>> rm.load_model("fundus_resnet").card.dataset
'phantom_fundus'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robustbench_med.version import __version__ as __version__

if TYPE_CHECKING:
    from robustbench_med.api import (
        AttackResult,
        Evaluation,
        InputContract,
        ModelHandle,
        SuiteRun,
        attack,
        defend,
        evaluate,
        load_dataset,
        load_model,
        run_suite,
    )

__all__ = [
    "AttackResult",
    "Evaluation",
    "InputContract",
    "ModelHandle",
    "SuiteRun",
    "attack",
    "defend",
    "evaluate",
    "load_dataset",
    "load_model",
    "run_suite",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any object of the API
    """Import the API when one of its names is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from robustbench_med import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
