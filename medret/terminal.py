"""Tables and lines on the terminal, in which text from outside has no effect but to be read."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from medret.visible import visible

WIDE = 100_000  # characters: rows of a table that a program reads are not wrapped


class Terminal(Console):
    """Rich's console. Text is made visible, `[red]` stays text, and tables that do not go to a terminal are wide."""

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, highlight=False, emoji=False, markup=False)
        if not self.is_terminal:
            self.width = WIDE

    def render_str(self, text: str, **options: Any) -> Text:
        """The text, or a cell of a table, made visible."""
        return super().render_str(visible(text), **options)
