"""The layer of each test file: what it runs on, and so how far a failure has to be searched.

`pytest -m unit` runs the tests of single functions on toys, `component` those of several modules
together on toys or small phantoms, `e2e` those of whole commands, pages and processes, and
`statistics` those that hold intervals and tests against simulations or exact distributions.
"""

from __future__ import annotations

LAYERS = ("unit", "component", "e2e", "statistics")

# the longest path that a file's path begins with decides
_OF = {
    "tests/": "unit",
    "tests/attacks/": "component",
    "tests/bench/": "component",
    "tests/bench/test_store.py": "e2e",
    "tests/bench/test_workers.py": "e2e",
    "tests/bench/test_decision.py": "statistics",
    "tests/cli/": "e2e",
    "tests/datasets/": "component",
    "tests/defenses/": "component",
    "tests/docs/": "e2e",
    "tests/gate/": "component",
    "tests/gate/test_drop.py": "statistics",
    "tests/gate/test_plugin.py": "e2e",
    "tests/leaderboard/": "component",
    "tests/leaderboard/test_browser": "e2e",
    "tests/leaderboard/test_phone.py": "e2e",
    "tests/leaderboard/test_significance.py": "statistics",
    "tests/leaderboard/report/test_phone.py": "e2e",
    "tests/models/": "component",
    "tests/regression/": "e2e",
    "tests/stats/": "statistics",
    "tests/studies/": "component",
    "tests/test_api.py": "component",
    "tests/test_simulation.py": "statistics",
    "tests/test_tutorial.py": "e2e",
    "tests/training/": "component",
}


def layer_of(path: str) -> str:
    """Return the layer of a test file or of a source file with doctests, by its path.

    >>> layer_of("tests/test_ball.py"), layer_of("tests/cli/test_cli.py")
    ('unit', 'e2e')
    """
    prefixes = [prefix for prefix in _OF if path.startswith(prefix)]
    return _OF[max(prefixes, key=len)] if prefixes else "unit"
