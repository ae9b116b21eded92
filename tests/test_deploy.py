"""What is ready to copy parses, and names what exists."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import yaml

from medret.cli.main import _parser

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def test_cron_job_creates_a_ray_job_that_runs_the_job_of_this_checkout() -> None:
    config, cron = yaml.safe_load_all((DEPLOY / "cronjob.yaml").read_text())
    assert (config["kind"], cron["kind"]) == ("ConfigMap", "CronJob")
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["volumes"][0]["configMap"]["name"] == config["metadata"]["name"]
    job = yaml.safe_load(config["data"]["rayjob.yaml"])
    python, script, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert python == "python"
    assert (ROOT / script).exists()
    assert _parser().parse_args(["index", *arguments]).command == "index"
    assert job["spec"]["rayClusterSpec"]["authOptions"]["mode"] == "token"
    assert f"ray=={job['spec']['rayClusterSpec']['rayVersion']}" in (ROOT / "constraints.txt").read_text()


def test_service_runs_commands_that_parse_and_knows_their_exit_codes() -> None:
    text = (DEPLOY / "medret-reindex.service").read_text()
    lines = re.findall(r"^ExecStart(?:Post)?=\S+/medret (.*)$", text, re.MULTILINE)
    assert [_parser().parse_args(shlex.split(line)).command for line in lines] == ["index", "gc"]
    assert "SuccessExitStatus=4 5" in text
    assert "OnCalendar=" in (DEPLOY / "medret-reindex.timer").read_text()


def test_dashboard_shows_the_metrics_that_a_run_exports() -> None:
    exported = set(re.findall(r'Counter\("(\w+)"', (ROOT / "medret" / "pipeline" / "counter.py").read_text()))
    assert exported
    board = json.loads((DEPLOY / "grafana.json").read_text())
    shown = {name for panel in board["panels"] for target in panel["targets"] for name in _metrics(target["expr"])}
    assert shown == exported


def _metrics(expression: str) -> set[str]:
    return set(re.findall(r"ray_(medret_\w+?)_total", expression))
