"""The gate: a pytest plugin that fails a test if a model is weaker than it was.

    def test_robust_enough(robustness):
        assert robustness(model, data, "pgd(eps=2/255)", n=64).accuracy >= 0.70

    def test_as_recorded(robustness):
        robustness.holds("records/chest", model, data, "pgd(eps=2/255)", n=64)

pytest imports this file in every project of an environment that has the package. Hence it imports
no other module of the bench until a test uses the fixture.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from robustbench_med.gate.fixture import Robustness

_PROPERTY = "robustness"  # property of a test's report, for the lines of the summary


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the gate."""
    group = parser.getgroup("robustness", "robustness of models (robustbench_med)")
    group.addoption(
        "--robustness-update",
        action="store_true",
        help="write the measured result as the record instead of failing",
    )
    group.addoption(
        "--robustness-data",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder with the .npz files of real datasets",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers",
        "robustness(**settings): the test measures a model under attack; every test with the "
        "fixture of this name has this marker; settings are defaults of its calls, e.g. n=64, "
        "norm='l2'",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that uses the fixture, so that `-m robustness` selects it."""
    for item in items:
        if "robustness" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.robustness)


@pytest.fixture
def robustness(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Robustness:
    """Measure models under attack, and compare them with their records."""
    from robustbench_med.gate.fixture import Robustness

    base = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # the workers of pytest-xdist share their records
        base = base.parent
    settings: dict[str, object] = {}
    for marker in reversed(list(request.node.iter_markers("robustness"))):  # the closest wins
        settings |= marker.kwargs

    def tell(line: str) -> None:
        request.node.user_properties.append((_PROPERTY, line))

    return Robustness(
        cache=base / "robustness",
        settings=settings,
        data=request.config.getoption("--robustness-data"),
        update=request.config.getoption("--robustness-update"),
        tell=tell,
    )


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Explain a score that is too low by its interval and the number of images."""
    module = sys.modules.get("robustbench_med.gate.measured_score")
    if (
        module is None
        or not isinstance(left, module.MeasuredScore)
        or not isinstance(right, int | float)
    ):
        return None
    return [f"{float(left):.3f} {op} {right:g}", *left.explain(float(right))]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the lines of the gate, whether or not the tests passed."""
    reports = (report for several in terminalreporter.stats.values() for report in several)
    # without the reports of setup and teardown
    calls = [report for report in reports if getattr(report, "when", "") == "call"]
    lines = [line for report in calls for line in _lines(report.user_properties)]
    if lines:
        terminalreporter.write_sep("-", "robustness")
        for line in lines:
            terminalreporter.write_line(line)


def _lines(properties: Iterable[tuple[str, object]]) -> list[str]:
    return [str(value) for name, value in properties if name == _PROPERTY]
