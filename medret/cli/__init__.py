"""The command line: `medret COMMAND ...`."""

import os

# Pydantic looks for plugins of its own among all installed packages, which takes longer than a search. Here are none.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

from medret.cli.main import main

__all__ = ["main"]
