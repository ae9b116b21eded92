"""What to ask before `medret index`: `scan` says what there is in an archive, and `models` lists the models by name."""

from __future__ import annotations

import argparse
import json
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from medret.cli.shared import add_choice, add_command
from medret.storage import redacted
from medret.visible import say, visible

if TYPE_CHECKING:
    from medret.archive.overview import Overview

DESCRIPTION = """\
Say what there is below ARCHIVE: NIfTI files, DICOM series and zips of them, what `medret index` would leave out and
why, and which labels the archive brings. It needs no store, loads no model and writes nothing. Of DICOM series it
reads the first bytes of a few instances.
"""

EXAMPLES = """\
examples:
  medret scan ~/dicom-export
  medret scan s3://idc-open-data/COLLECTION --storage-option anon=true
  medret scan ~/nifti --exclude 'derivatives/**' --labels labels.csv --json
"""

MODELS = "List the models that `--model` knows: width, input side, licence, and where their weights come from."
MODELS_EPILOG = (
    "Beside these, timm:NAME, timm:hf_hub:OWNER/NAME and hf:OWNER/NAME take any vision model of timm and transformers."
)

KINDS = {"nifti": "NIfTI files", "dicom": "DICOM series", "packed": "zips and tars of DICOM series"}
NOT_A_VOLUME = "not_a_volume"  # the rule
SUFFIXES_SHOWN = 8
NAMES_SHOWN = 8
WIDTH = 80
_TIED = "\N{NO-BREAK SPACE}"  # a name and its count stay on one line


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "scan", run, "say what there is in an archive", DESCRIPTION, EXAMPLES)
    parser.add_argument("archive", metavar="ARCHIVE", help="folder or URI of an archive, or of one volume")
    add_choice(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from medret.archive import list_archive, read_labels
    from medret.archive.overview import overview
    from medret.vocabularies import labels_of_tags
    from medret.volume.dicom.tags import head_labels

    listing = list_archive(
        arguments.archive,
        arguments.pattern,
        exclude=arguments.exclude,
        include_masks=arguments.include_masks,
        inventory=arguments.inventory,
    )
    tags = head_labels(listing.series, labels_of_tags(arguments.no_dicom_labels or ()))
    found = overview(listing, read_labels(arguments.labels, listing), tags)
    following = next_command(arguments, found)
    if arguments.json:
        say(json.dumps({**found.to_json(), "next": following}))
    else:
        for line in lines(found, following):
            say(line)
    return 0


def next_command(arguments: argparse.Namespace, found: Overview) -> str | None:
    """The command that indexes what was found; None if there is nothing to index."""
    if not found.volumes:
        return None
    words = ["medret", "index", arguments.archive, "STORE"]
    for option, value in (("--glob", arguments.pattern), ("--labels", arguments.labels)):
        words += [option, value] if value else []
    words += [word for tags in arguments.no_dicom_labels or () for word in ("--no-dicom-labels", tags)]
    words += [word for pattern in arguments.exclude for word in ("--exclude", pattern)]
    words += ["--include-masks"] if arguments.include_masks else []
    words += ["--inventory", arguments.inventory] if arguments.inventory else []
    words += [word for text in arguments.storage_texts for word in ("--storage-option", text)]
    return redacted(shlex.join(words))


def lines(found: Overview, following: str | None) -> Iterator[str]:
    """The overview for people, at most 80 columns wide where names allow it."""
    yield f"{found.archive}: {found.objects:,} objects"
    yield ""
    if found.kinds:
        yield f"{'volumes':>9}  {'objects':>10}  {'size':>10}  kind"
        for kind in found.kinds:
            name = KINDS[kind.kind] + (f", {kind.modality}" if kind.modality else "")
            yield f"{kind.volumes:>9,}  {kind.objects:>10,}  {size_text(kind.size_bytes):>10}  {name}"
    else:
        yield "nothing that medret indexes: neither NIfTI files (.nii, .nii.gz) nor DICOM series"
    if found.left_out:
        yield ""
        yield f"{'left out':>9}  rule and reason"
        for rule in found.left_out:
            yield f"{rule.objects:>9,}  {rule.rule}: {rule.why}"
            if rule.rule == NOT_A_VOLUME and found.suffixes:
                by_bytes = rule.objects - sum(found.suffixes.values())
                looked_at = {"others, by their bytes": by_bytes} if by_bytes else {}
                yield from _wrapped(_shown(_named(found.suffixes) | looked_at, SUFFIXES_SHOWN), 11)
            elif rule.examples:
                yield f"{'':11}{_tail(rule.examples[0], WIDTH - 11)}"
    yield ""
    yield from _labels(found)
    for note in found.notes:
        yield from _wrapped(f"note: {note}")
    if any(kind.kind != "nifti" for kind in found.kinds) and find_spec("pydicom") is None:
        yield 'note: to read DICOM, install: pip install "medret[dicom]"'
    if following:
        yield ""
        yield f"next: {following}"


def _labels(found: Overview) -> Iterator[str]:
    from medret.schemas import LABELS  # loads pyarrow, which `medret --help` does without

    if found.labels:
        yield f"{'labelled':>9}  {'':5}{'values':>7}  label, and where it comes from"
        for label in found.labels:
            origins = ", ".join(f"{origin} {count:,}" for origin, count in label.origins.items())
            share = f"{100 * label.volumes / found.volumes:.0f} %"
            yield f"{label.volumes:>9,}  {share:>5}{label.values:>7,}  {label.name}, from {origins}"
            if label.frequent:
                more = label.values - len(label.frequent)
                yield from _wrapped(_shown(label.frequent, NAMES_SHOWN, more), 27)
    if found.metadata:
        yield from _wrapped(f"other labels: {_shown(found.metadata, NAMES_SHOWN)}")
    if missing := [name for name in LABELS if name not in {label.name for label in found.labels}]:
        yield from _wrapped(f"not labelled: {', '.join(missing)} (--labels TABLE gives labels)")
    if rows := found.join["unmatched_rows"]:
        yield f"{rows:,} rows of the table name no volume, {found.join['ambiguous_rows']:,} of them several"
    if any(kind.kind != "nifti" for kind in found.kinds):
        yield from _wrapped(
            "indexing reads more tags of DICOM series: UIDs, dates, descriptions, manufacturer, kernel and sequence"
        )


def _named(suffixes: Mapping[str, int]) -> dict[str, int]:
    return {suffix or "without a suffix": count for suffix, count in suffixes.items()}


def _shown(counts: Mapping[str, int], most: int, more: int = 0) -> str:
    """The first names with their counts. more: how many there are besides."""
    shown = ", ".join(f"{name}{_TIED}{count:,}" for name, count in list(counts.items())[:most])
    more += max(0, len(counts) - most)
    return f"{shown} and {more:,} more" if more else shown


def _wrapped(text: str, indent: int = 0) -> list[str]:
    margin = " " * indent
    wrapped = textwrap.wrap(
        visible(text), WIDTH, initial_indent=margin, subsequent_indent=margin or "  ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return [line.replace(_TIED, " ") for line in wrapped]


def _tail(path: str, width: int) -> str:
    """The end of a path, if all of it is too long for a line."""
    return path if len(path) <= width else f"...{path[3 - width :]}"


def size_text(size_bytes: int) -> str:
    """A size for people: 12.3 GiB."""
    size, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def add_models(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "models", run_models, "list the models", MODELS, MODELS_EPILOG)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def run_models(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from medret.models import model_names, model_spec

    specs = [model_spec(name) for name in model_names()]
    if arguments.json:
        say(json.dumps([asdict(spec) for spec in specs], default=str))
    else:
        from medret.cli.tables import print_models

        print_models(specs)
        for line in MODELS_EPILOG.splitlines():
            say(line)
    return 0
