"""Commands that run in this process."""

from __future__ import annotations

from functools import cache

import pytest
import typer.core
import typer.main

_get_command = cache(typer.main.get_command)


@pytest.fixture(autouse=True)
def _commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build the commands once, and hand each the context that it names.

    Typer builds all commands anew at every call, which a process of a person makes once. It hands
    them a plain click context, which the type checker of the tests refuses.
    """
    monkeypatch.setattr(typer.main, "get_command", _get_command)
    monkeypatch.setattr(typer.core.TyperCommand, "context_class", typer.Context)
