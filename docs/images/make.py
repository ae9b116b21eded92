"""Make hits.png, the picture in README.md: the page of hits for two phantoms of the demo.

Run `medret demo /tmp/demo && python docs/images/make.py /tmp/demo`. It needs Chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import medret

QUERIES = ("chest_ct", "heart_mri")


def main(demo: Path) -> int:
    """Search the demo's store, write the page, and take its picture."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.stderr.write("this needs Chromium\n")
        return 1
    snapshot = medret.open_snapshot(demo / "store")
    paths = [str(demo / "queries" / name / f"{name}_01.nii.gz") for name in QUERIES]
    answers = snapshot.search_many(paths, k=4)
    page = demo / "picture.html"
    results = [(name, path, hits) for name, path, hits in zip(QUERIES, paths, answers, strict=True)]
    html = snapshot.pictures.page(results, title="medret: hits for two phantoms")
    page.write_text(html.replace(str(demo), "demo"), encoding="utf-8")
    picture = Path(__file__).with_name("hits.png")
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1200,760", f"--screenshot={picture}"]
    subprocess.run([browser, *options, page.resolve().as_uri()], check=True)  # noqa: S603  # arguments of our own
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
