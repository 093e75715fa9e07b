"""Each text of a case is parsed once, in `plan`; nothing that runs a case parses it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from robustbench_med import objectives, registry, spec
from robustbench_med.bench import plan as planning
from robustbench_med.bench.case import Case
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.runner import run_cases
from robustbench_med.bench.suite import Suite
from robustbench_med.models import user_factory
from tests.bench.toys import small_phantoms

VICTIM, SURROGATE = "fundus_resnet", "fundus_densenet"
# none of these attacks is one of the probes that the checks run themselves
ATTACKS = ("bim(steps=2)", "mi_fgsm(steps=2)")
SHARED = {"datasets": ["phantom_fundus"], "victims": [VICTIM], "ladder": ["2/255"], "n": 4}
GRIDS: list[dict[str, Any]] = [
    {"attacks": ATTACKS, "objective": "targeted(target=1)"},
    {
        "attacks": ATTACKS[:1],
        "defenses": ["confidence(fpr=0.2)"],
        "knowledge": ["adaptive", "oblivious", "feature_squeezing(fpr=0.2)"],
    },
    {"attacks": ATTACKS[:1], "surrogates": [SURROGATE]},
]


@pytest.fixture(autouse=True)
def _few_images() -> Iterator[None]:
    with small_phantoms():
        yield


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return how often each text was parsed or looked up since the last time it was cleared."""
    counts: Counter[str] = Counter()

    def counted(place: Any, name: str, text_of: Callable[..., str | None]) -> None:  # noqa: ANN401
        function = getattr(place, name)

        def call(*args: Any, **options: Any) -> Any:  # noqa: ANN401
            text = text_of(*args)
            if text is not None:
                counts[text] += 1
            return function(*args, **options)

        monkeypatch.setattr(place, name, call)

    counted(spec, "parse", lambda text: text)
    counted(objectives, "parse", lambda text: text)
    counted(registry, "find", lambda kind, name: None if kind == "datasets" else f"{kind} {name}")
    counted(user_factory, "factory_of", lambda text: text)
    return counts


def texts_of(case: Case) -> set[str]:
    """Return every text that names something a case is made of, and the look-ups it leads to."""
    texts = {case.defense, case.objective, case.victim, f"attacks {case.attack}", *ATTACKS}
    texts |= {case.evaded_detector, f"models {case.victim}", f"models {case.surrogate}"}
    names = (case.defense, case.evaded_detector)
    return texts | {f"defenses {name.partition('(')[0]}" for name in names} | {str(case.surrogate)}


def test_each_text_is_parsed_once_and_none_while_a_case_runs(
    parsed: Counter[str], tmp_path: Path
) -> None:
    cases: list[ResolvedCase] = []
    for grid in GRIDS:
        suite = Suite.model_validate({"name": "t", "title": "T", "grids": [SHARED | grid]})
        parsed.clear()
        planned, failures = planning.plan(suite)
        assert not failures
        named = {text for one in planned for text in texts_of(one.case)}
        assert {text: n for text, n in parsed.items() if text in named and n != 1} == {}
        assert parsed[planned[0].case.objective] == 1
        assert all(parsed[text] == 1 for text in grid["attacks"])
        cases += planned
    assert len(cases) == 6
    parsed.clear()
    console = Console(quiet=True)
    assert run_cases(cases, tmp_path, console=console, command="run", examples=1) == []
    named = {text for one in cases for text in texts_of(one.case)}
    assert {text: n for text, n in parsed.items() if text in named} == {}
    assert parsed["attacks fgsm"] > 0  # the look-ups of a check are seen: it is no dead counter
