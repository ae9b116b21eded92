"""Each optional package is missing in turn, and each command says which extra brings it, in one line."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

from medret.errors import EXTRAS
from tests.dicom_bytes import write_series

ROOT = Path(__file__).parents[2]
DECODERS = {"libjpeg", "openjpeg"}  # asked for when compressed pixels are met

# In one process, which forks for every case: what is imported by then is imported once.
SCRIPT = """
import contextlib, io, json, os, sys
from medret.cli import main

class Blocked:
    def __init__(self, packages):
        self.packages = packages
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for packages, arguments in json.loads(sys.argv[1]):
    sys.stdout.flush()
    if not {"ray", "faiss", "nibabel", "shtab"} & set(packages):
        import medret.pipeline.run  # Ray, but none of the others: once for all that follow
    child = os.fork()
    if not child:
        sys.meta_path.insert(0, Blocked(packages))
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(arguments)
        except BaseException as error:
            code = repr(error)
        print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def run(cases: list[tuple[list[str], list[str]]]) -> list[tuple[int, str, str]]:
    command = [sys.executable, "-c", SCRIPT, json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    results = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(results) == len(cases)
    return results


def test_every_command_names_the_extra_that_it_needs(store: Path, phantom_archive: Path, tmp_path: Path) -> None:
    """A10: one line, exit code 2, whatever the command and whatever is missing."""
    archive, new = str(phantom_archive), str(tmp_path / "store")
    image = str(next(phantom_archive.rglob("*.nii.gz")))
    write_series(tmp_path / "dicom" / "ct", "1.2.3", 2)
    dicom = str(tmp_path / "dicom")
    (tmp_path / "config.json").write_text("{}")
    cases = [
        ("faiss", ["index", archive, new]),
        ("faiss", ["search", str(store), "head_mri/head_mri_0.nii.gz"]),
        ("nibabel", ["demo", str(tmp_path / "demo")]),
        ("shtab", ["--print-completion", "bash"]),
        ("ray", ["index", archive, new]),
        ("ray", ["plan", archive, new]),
        ("ray", ["demo", str(tmp_path / "demo")]),
        ("duckdb", ["index", archive, new]),
        ("duckdb", ["plan", archive, new]),
        ("torch", ["index", archive, new]),
        ("torch", ["search", str(store), image]),
        ("torch", ["evaluate", str(store), "--queries", archive]),
        ("torchvision", ["index", archive, new]),
        ("timm", ["index", archive, new]),
        ("safetensors", ["index", archive, new]),
        ("huggingface_hub", ["index", archive, new, "--model", "dinov2"]),
        ("dreamsim", ["index", archive, new, "--model", "dreamsim", "--weights", "dreamsim=random"]),
        ("transformers", ["index", archive, new, "--model", f"hf:{tmp_path}"]),
        ("pydicom", ["index", dicom, new]),
        ("pydicom", ["search", str(store), f"{dicom}/ct"]),
        ("s3fs", ["index", "s3://bucket/prefix", new]),
        ("s3fs", ["index", archive, "s3://bucket/prefix"]),
        ("s3fs", ["index", archive, new, "--labels", "s3://bucket/labels.csv"]),
        ("s3fs", ["search", "s3://bucket/prefix", "x"]),
        ("s3fs", ["verify", "s3://bucket/prefix"]),
        *((package, ["serve", str(store)]) for package, extra in EXTRAS.items() if extra == "serve"),
    ]
    results = run([([package], arguments) for package, arguments in cases])
    for (package, arguments), (code, out, err) in zip(cases, results, strict=True):
        what = (package, arguments, out, err)
        assert code == 2, what
        assert err.startswith(f"medret {arguments[0]}: "), what
        assert f'pip install "medret[{EXTRAS[package]}]"' in err, what
        assert len(err.splitlines()) == 1, what
    assert {package for package, _ in cases} == set(EXTRAS) - DECODERS


def test_the_extra_search_is_enough_to_retrieve(store: Path) -> None:
    """A10: faiss alone opens a store, searches it by id, scores it and lists its history."""
    missing = [package for package in EXTRAS if package != "faiss"]
    commands = [["models"], ["search", str(store), "head_mri/head_mri_0.nii.gz"], ["snapshots", str(store)],
                ["verify", str(store)], ["evaluate", str(store), "--json"]]  # fmt: skip
    for arguments, (code, _, err) in zip(commands, run([(missing, one) for one in commands]), strict=True):
        assert code == 0, (arguments, err)


def test_extras_are_those_of_the_package() -> None:
    """A10: every extra that is named exists and requires what is said of it."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        names = (package, package.replace("_", "-"), f"pylibjpeg-{package}")
        assert any(one.startswith(names) for one in declared[extra]), package
