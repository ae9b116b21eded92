"""Tables and lines for people, in which no text from outside does more than stand there."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from medret.visible import visible

WIDE = 100_000  # characters: no row of a table is broken where a program reads it


class Terminal(Console):
    """Rich's console. Every text is made visible, `[red]` is text; tables are wide where no person looks at them."""

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, highlight=False, emoji=False, markup=False)
        if not self.is_terminal:
            self.width = WIDE

    def render_str(self, text: str, **options: Any) -> Text:
        """A text, or a cell of a table, as it will stand there."""
        return super().render_str(visible(text), **options)
