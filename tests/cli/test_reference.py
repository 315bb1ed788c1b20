"""The written reference equals the program, and every command explains itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from viscera.cli.reference import PAGES, commands

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"


@pytest.mark.parametrize("page", PAGES)
def test_the_reference_is_up_to_date(page):
    assert (REFERENCE / page).read_text(encoding="utf-8") == PAGES[page](), "run `make docs`"


@pytest.mark.parametrize(
    ("words", "command"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_has_help_and_an_example(words, command):
    assert command.help
    if not hasattr(command, "commands"):
        assert "xample" in command.help, f"the help of `{words}` has no example"
        for parameter in command.params:
            assert getattr(parameter, "help", True), f"`{words}`: {parameter.name} has no help"
