"""The command line: `medret COMMAND ...`."""

from medret.cli.main import main
