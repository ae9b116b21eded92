"""`medret models`: the models by name."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from medret.cli.shared import add_command
from medret.visible import say

DESCRIPTION = "List the models that `--model` knows: width, input side, licence, and where their weights come from."
EPILOG = (
    "Beside these, timm:NAME, timm:hf_hub:OWNER/NAME and hf:OWNER/NAME take any vision model of timm and transformers."
)


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "models", run, "list the models", DESCRIPTION, EPILOG)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from medret.models import model_names, model_spec

    specs = [model_spec(name) for name in model_names()]
    if arguments.json:
        say(json.dumps([asdict(spec) for spec in specs], default=str))
    else:
        from medret.cli.tables import print_models

        print_models(specs)
        for line in EPILOG.splitlines():
            say(line)
    return 0
