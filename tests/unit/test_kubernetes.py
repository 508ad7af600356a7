"""deploy/k8s: what Kubernetes takes, and what the service, its settings and its image say."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import ValidationError, latest_version, validate
from prometheus_client import CollectorRegistry

from service.environment import read_settings
from service.settings import SECRETS, Settings
from service.web.app import create_app
from service.worker import _monitor_app
from tests.unit.test_http import MODEL

ROOT = Path(__file__).parents[2]
BASE, KEDA = ROOT / "deploy" / "k8s" / "base", ROOT / "deploy" / "k8s" / "keda"
OLDEST = "1.30"
PARTS = ("scorer", "learner")
NOTHING: Any = None


def read(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


KUSTOMIZATION = read(BASE / "kustomization.yaml")[0]
OBJECTS = [one for name in KUSTOMIZATION["resources"] for one in read(BASE / name)]


def one(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in OBJECTS if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def pod(part: str) -> dict[str, Any]:
    spec: dict[str, Any] = one("Deployment", f"freshet-{part}")["spec"]["template"]["spec"]
    return spec


def container(part: str) -> dict[str, Any]:
    (found,) = pod(part)["containers"]
    return found  # type: ignore[no-any-return]


def environ(part: str) -> dict[str, str]:
    """What a container has in its environment."""
    assert container(part)["envFrom"] == [{"configMapRef": {"name": KUSTOMIZATION["configMapGenerator"][0]["name"]}}]
    lines = [line for line in (BASE / "settings.env").read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines) | {each["name"]: each["value"] for each in container(part)["env"]}


def settings(part: str, folder: Path) -> Settings:
    """As a container reads them, whose secrets are in another folder."""
    mounts = {mount["name"]: mount["mountPath"] for mount in container(part)["volumeMounts"]}
    (volume,) = [each["secret"] for each in pod(part)["volumes"] if "secret" in each]
    there = {f"{mounts['secrets']}/{item['path']}": item["key"] for item in volume["items"]}
    read = dict(environ(part))
    for variable, path in read.items():
        if variable.endswith("_FILE"):
            (folder / there[path]).write_text(f"secret {there[path]}\n")
            read[variable] = str(folder / there[path])
    # None is mounted that is not read.
    assert {environ(part)[name] for name in read if name.endswith("_FILE")} == there.keys()
    return read_settings(read)


@pytest.mark.parametrize("version", [OLDEST, latest_version()])
def test_every_object_is_one_that_kubernetes_takes(version: str) -> None:
    for each in OBJECTS:
        validate(each, version, strict=True)
    wrong = one("Deployment", "freshet-scorer") | {"spec": {"replica": 1}}
    with pytest.raises(ValidationError):
        validate(wrong, version, strict=True)
    kinds = {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"}
    assert {each["kind"] for each in OBJECTS} == kinds


@pytest.mark.parametrize("folder", [BASE, KEDA], ids=["base", "keda"])
def test_what_kustomize_makes_of_it_is_taken_too_and_selects_the_same_pods(folder: Path, kubectl: str) -> None:
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=True)
    made = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(done.stdout)}
    for (kind, _), each in made.items():
        if kind != "ScaledObject":
            validate(each, OLDEST, strict=True)
    for each in OBJECTS:
        got = made[each["kind"], each["metadata"]["name"]]["spec"]
        for key in ("selector", "podSelector", "ingress", "egress"):
            assert got.get(key) == each["spec"].get(key)
    learners = made["Deployment", "freshet-learner"]["spec"]
    assert ("replicas" in learners) is (folder == BASE)
    (named,) = {name for kind, name in made if kind == "ConfigMap"}
    assert learners["template"]["spec"]["containers"][0]["envFrom"] == [{"configMapRef": {"name": named}}]


@pytest.mark.parametrize("part", PARTS)
def test_every_setting_is_one_and_secrets_come_by_file(part: str, tmp_path: Path) -> None:
    mine = settings(part, tmp_path)
    assert (mine.api_key, mine.redis_password) == ("secret api_key", "secret redis_password")
    # What learners do not ask for they have not.
    assert mine.admin_key == ("secret admin_key" if part == "scorer" else "")
    assert mine.host == "0.0.0.0"
    for variable in environ(part):
        assert variable.removeprefix("FRESHET_").lower() not in SECRETS
    for path in (BASE, KEDA):
        for file in path.iterdir():
            for name in re.findall(r"\bFRESHET_[A-Z_]+\b", file.read_text()):
                known = name.removeprefix("FRESHET_").removesuffix("_FILE").lower()
                assert known in Settings.__struct_fields__, (file.name, name)


@pytest.mark.parametrize("part", PARTS)
def test_ports_paths_command_and_model_are_those_of_the_process(part: str, tmp_path: Path) -> None:
    mine, it = settings(part, tmp_path), container(part)
    if part == "scorer":
        port, app, command = mine.port, create_app(mine, MODEL, NOTHING, NOTHING), "serve"
    else:
        port, app, command = mine.learner_port, _monitor_app(mine, NOTHING, NOTHING, CollectorRegistry()), "learn"
    assert it["args"] == [command]
    assert it["ports"] == [{"name": "http", "containerPort": port}]
    paths = {getattr(route, "path", "") for route in app.routes}
    for probe, path in (("startup", "live"), ("liveness", "live"), ("readiness", "ready")):
        asked = it[f"{probe}Probe"]["httpGet"]
        assert asked == {"path": f"/health/{path}", "port": "http"}
        assert asked["path"] in paths
    mounts = {mount["name"]: mount["mountPath"] for mount in it["volumeMounts"]}
    assert mine.model == f"{mounts['model']}/model.toml"
    assert "configmap freshet-model --from-file=model.toml=" in (BASE / "kustomization.yaml").read_text()


@pytest.mark.parametrize("part", PARTS)
def test_a_container_can_do_no_more_than_it_needs(part: str) -> None:
    it, around = container(part), pod(part)
    assert it["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    (uid,) = re.findall(r"useradd .*--uid (\d+)", (ROOT / "deploy" / "Dockerfile").read_text())
    assert around["securityContext"]["runAsNonRoot"] is True
    assert around["securityContext"]["runAsUser"] == int(uid)
    assert around["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert around["enableServiceLinks"] is False
    assert around["automountServiceAccountToken"] is False
    # Its root cannot be written: what Python and the workers' metrics write goes here.
    assert {"name": "tmp", "mountPath": "/tmp"} in it["volumeMounts"]
    wait = it.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert around["terminationGracePeriodSeconds"] >= wait + 25
    assert it["resources"]["limits"].keys() == {"memory"}


def selectors() -> Iterator[tuple[str, dict[str, Any]]]:
    for part in PARTS:
        of = f"freshet-{part}"
        yield part, one("Deployment", of)["spec"]["selector"]["matchLabels"]
        yield part, one("PodDisruptionBudget", of)["spec"]["selector"]["matchLabels"]
        yield part, one("NetworkPolicy", of)["spec"]["podSelector"]["matchLabels"]
        yield part, pod(part)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"]
    yield "scorer", one("Service", "freshet")["spec"]["selector"]


def test_every_selector_finds_the_pods_that_it_is_for() -> None:
    for part, selector in selectors():
        assert selector == one("Deployment", f"freshet-{part}")["spec"]["template"]["metadata"]["labels"]
    both = one("NetworkPolicy", "freshet-egress")["spec"]["podSelector"]["matchExpressions"]
    for part in PARTS:
        labels = one("Deployment", f"freshet-{part}")["spec"]["template"]["metadata"]["labels"]
        assert all(each["operator"] == "In" and labels[each["key"]] in each["values"] for each in both)


def test_what_comes_in_and_goes_out_is_on_the_ports_of_the_settings(tmp_path: Path) -> None:
    (inward,) = one("NetworkPolicy", "freshet-scorer")["spec"]["ingress"]
    assert inward == {"ports": [{"port": container("scorer")["ports"][0]["containerPort"]}]}
    (inward,) = one("NetworkPolicy", "freshet-learner")["spec"]["ingress"]
    assert inward["ports"] == [{"port": container("learner")["ports"][0]["containerPort"]}]
    assert inward["from"]
    mine = settings("learner", tmp_path)
    ports = [int(re.findall(r":(\d+)(?:/|$)", url)[0]) for url in (mine.store, mine.log)]
    outward = one("NetworkPolicy", "freshet-egress")["spec"]["egress"]
    assert [each["ports"][0]["port"] for each in outward] == [*ports, 53]
    assert all(each["to"] for each in outward)
    assert one("Service", "freshet")["spec"]["ports"] == [{"name": "http", "port": 8000, "targetPort": "http"}]


def test_what_scales_names_what_is_there(tmp_path: Path) -> None:
    target = one("HorizontalPodAutoscaler", "freshet-scorer")["spec"]["scaleTargetRef"]
    scorers = one(target["kind"], target["name"])
    assert target["apiVersion"] == scorers["apiVersion"]
    # Or else every `kubectl apply` would undo what the autoscaler did.
    assert "replicas" not in scorers["spec"]
    assert "cpu" in container("scorer")["resources"]["requests"]
    (scaled,) = read(KEDA / "learners-by-lag.yaml")
    assert one("Deployment", scaled["spec"]["scaleTargetRef"]["name"])
    mine = settings("learner", tmp_path)
    (trigger,) = scaled["spec"]["triggers"]
    asked = trigger["metadata"]
    assert (asked["consumerGroup"], asked["topic"]) == (mine.group, mine.impressions_topic)
    assert f"kafka://{asked['bootstrapServers']}" == mine.log
    compose = (ROOT / "docker-compose.yml").read_text()
    partitions = int(re.findall(r"--topic \$\$topic --partitions (\d+)", compose)[0])
    assert scaled["spec"]["maxReplicaCount"] <= partitions
    assert one("Deployment", "freshet-learner")["spec"]["replicas"] <= partitions
