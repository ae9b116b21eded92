"""What is ready to copy parses, agrees with itself, and names what exists."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from medret import __version__
from medret.cli.main import _parser

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()


def manifest(name: str) -> dict[str, Any]:
    """The last document of a file of deploy/."""
    *_, last = yaml.safe_load_all((DEPLOY / name).read_text())
    assert isinstance(last, dict)
    return last


def pods(spec: Any) -> Iterator[dict[str, Any]]:
    """Every pod's spec somewhere in a manifest."""
    if isinstance(spec, dict):
        if "containers" in spec:
            yield spec
        for value in spec.values():
            yield from pods(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from pods(value)


def test_the_ray_job_runs_this_checkout_on_a_cluster_that_rests_at_zero() -> None:
    job = manifest("rayjob.yaml")["spec"]
    python, script, *arguments = shlex.split(job["entrypoint"])
    assert python == "python"
    workdir = re.findall(r"^WORKDIR (\S+)$", DOCKERFILE, re.MULTILINE)[-1]
    assert (ROOT / Path(script).relative_to(workdir)).exists()
    assert _parser().parse_args(["index", *arguments]).command == "index"
    cluster = job["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    assert f"ray=={cluster['rayVersion']}" in CONSTRAINTS
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert (group["replicas"], group["minReplicas"]) == (0, 0)
        assert group["maxReplicas"] > 0
    needs = [next(pods(group))["containers"][0]["resources"]["requests"] for group in cluster["workerGroupSpecs"]]
    assert [("nvidia.com/gpu" in need) for need in needs] == [False, True]


def test_the_manifests_agree() -> None:
    job = manifest("rayjob.yaml")
    cron = manifest("raycronjob.yaml")
    assert cron["spec"]["jobTemplate"] == job["spec"]
    account, role, binding, by_kubectl = yaml.safe_load_all((DEPLOY / "cronjob.yaml").read_text())
    assert by_kubectl["spec"]["concurrencyPolicy"] == "Forbid"
    assert {by_kubectl["spec"][name] == cron["spec"][name] for name in ("schedule", "timeZone")} == {True}
    [pod] = pods(by_kubectl)
    assert pod["serviceAccountName"] == account["metadata"]["name"] == binding["subjects"][0]["name"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]
    assert job["apiVersion"].startswith("ray.io/")
    mounted = pod["containers"][0]["volumeMounts"][0]["mountPath"]
    assert pod["containers"][0]["command"][-1] == f"{mounted}/rayjob.yaml"
    name = pod["volumes"][0]["configMap"]["name"]
    assert f"kubectl create configmap {name} --from-file=deploy/rayjob.yaml" in (DEPLOY / "cronjob.yaml").read_text()


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycronjob.yaml", "cronjob.yaml", "serve.yaml", "rayservice.yaml"])
def test_containers_are_pinned_bounded_and_not_root(name: str) -> None:
    for pod in pods(manifest(name)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["serviceAccountName"]
        for container in pod["containers"]:
            image, _, tag = container["image"].partition(":")
            assert tag not in ("", "latest")
            if "medret" in image:
                assert container["image"] == f"registry.example/medret-job:{__version__}"
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycronjob.yaml", "rayservice.yaml"])
def test_the_manifests_have_the_fields_of_kuberay(name: str) -> None:
    """Against config/crd/bases of KubeRay, if MEDRET_KUBERAY_CRDS names a copy. No field may be unknown to it."""
    folder = os.environ.get("MEDRET_KUBERAY_CRDS")
    if folder is None:
        pytest.skip("MEDRET_KUBERAY_CRDS names no copy of KubeRay's CRDs")
    content = manifest(name)
    crd = yaml.safe_load((Path(folder) / f"ray.io_{content['kind'].lower()}s.yaml").read_text())
    [version] = [each for each in crd["spec"]["versions"] if f"ray.io/{each['name']}" == content["apiVersion"]]
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {}
    jsonschema.Draft7Validator(_without_unknown_fields(schema)).validate(content)


def test_the_deployment_serves_with_tokens_to_its_service() -> None:
    service, deployment = yaml.safe_load_all((DEPLOY / "serve.yaml").read_text())
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    [container] = template["spec"]["containers"]
    arguments = _parser().parse_args(container["args"])
    assert (arguments.command, arguments.host) == ("serve", "0.0.0.0")
    [port] = container["ports"]
    assert port["containerPort"] == arguments.port == service["spec"]["ports"][0]["port"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    assert mounted.keys() == volumes.keys()
    assert arguments.token_file == f"{mounted['tokens']}/tokens.toml"
    assert {value["value"] for value in container["env"]} == {mounted["cache"], mounted["uploads"]}
    secret = volumes["tokens"]["secret"]["secretName"]
    assert f"kubectl create secret generic {secret} --from-file=tokens.toml" in (DEPLOY / "serve.yaml").read_text()


def test_the_ray_service_builds_an_application_of_this_checkout_with_tokens() -> None:
    spec = manifest("rayservice.yaml")["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    [application] = config["applications"]
    module, _, function = application["import_path"].partition(":")
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert f"def {function}(" in source
    fields = re.findall(r"^    (\w+): ", source.partition("class Arguments")[2].partition("class ")[0], re.MULTILINE)
    assert set(application["args"]) <= set(fields)
    cluster = spec["rayClusterConfig"]
    assert cluster["authOptions"]["mode"] == "token"
    assert f"ray=={cluster['rayVersion']}" in CONSTRAINTS
    tokens = Path(application["args"]["token_file"])
    for pod in pods(cluster):
        assert {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]} == {str(tokens.parent)}
    [workdir] = re.findall(r"^WORKDIR (\S+)$", DOCKERFILE, re.MULTILINE)
    assert application["runtime_env"]["env_vars"] == {"PYTHONPATH": workdir}


def _without_unknown_fields(schema: Any) -> Any:
    """The schema, refusing fields that it does not name, as kubectl does."""
    if isinstance(schema, list):
        return [_without_unknown_fields(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _without_unknown_fields(each) for name, each in schema.items()}
    if isinstance(closed.get("properties"), dict) and "type" in closed:
        closed.setdefault("additionalProperties", bool(closed.get("x-kubernetes-preserve-unknown-fields")))
    return closed


def stages() -> dict[str, str]:
    """The stages of the Dockerfile, by name."""
    parts = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    return {part.splitlines()[0].rpartition(" AS ")[2]: part for part in parts}


def test_images_are_pinned_and_not_root() -> None:
    """What hadolint asks for: versions, a user, and the JSON form of commands."""
    found = stages()
    for name, stage in found.items():
        image = stage.split()[0]
        assert image in found or re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", image), name
    for target in ("job", "search"):
        assert re.findall(r"^USER (.+)$", found[target], re.MULTILINE) == ["1000:1000"]
        assert re.findall(r"^ENTRYPOINT (.+)$", found[target], re.MULTILINE) == ['["medret"]']
        assert f"--extra {target} --extra s3" in found[f"{target}-libraries"]
        assert f"COPY --from={target}-libraries /opt/venv /opt/venv" in found[target]
        assert f"--target {target} -t registry.example/medret-{target}:{__version__} ." in DOCKERFILE
    assert list(found)[-1] == "job"
    [pinned] = re.findall(r"pip install --no-cache-dir (\S+)", DOCKERFILE)
    assert pinned in CONSTRAINTS
    assert "ADD " not in DOCKERFILE


def test_an_image_gets_the_files_that_it_copies_and_no_others() -> None:
    """Whatever lies in the folder (volumes, keys, an environment) stays out unless the Dockerfile copies it."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert kept == {name for copy in copies for name in copy.split()}
    assert all((ROOT / name).exists() for name in kept)
    assert any(fnmatch.fnmatch("medret/__pycache__", line) for line in lines[1:])


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
