"""What is packaged, and under which name."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path

import yaml

from service import DISTRIBUTION
from service.environment import read_settings

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked(file: str) -> dict[str, str]:
    """Versions by name, of a lock file in which every one has hashes."""
    text = (ROOT / file).read_text()
    found = dict(re.findall(r"^([a-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE))
    blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in block for block in blocks)
    # No marker of a merge, nor anything else that pip would not read.
    assert all(re.match(r"[a-z0-9]|    --hash=", line) for line in text.splitlines()), file
    return found


def test_the_distribution_has_a_name_of_our_own_and_the_command_keeps_its() -> None:
    assert PROJECT["project"]["name"] == DISTRIBUTION == "freshet-online"
    assert PROJECT["project"]["scripts"] == {"freshet": "service.__main__:main"}
    assert version(DISTRIBUTION) == PROJECT["project"]["version"]
    assert DISTRIBUTION in {one.dist.name for one in entry_points(group="console_scripts", name="freshet") if one.dist}


def test_nobody_is_told_to_install_a_name_that_is_not_ours() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        if Path(name).suffix in {".py", ".md", ".toml", ".sh", ".yml", ""} and (ROOT / name).is_file():
            text = (ROOT / name).read_text(encoding="utf-8")
            assert not re.search(r"install[^\n]{0,40} ['\"]?freshet(?!-online)(\[|['\"\s])", text), name


def test_what_builds_the_package_is_locked_too_and_fits_what_it_is_built_into() -> None:
    build = locked("requirements-build.lock")
    assert "hatchling" in build
    assert PROJECT["dependency-groups"]["build"] == PROJECT["build-system"]["requires"]
    for file in ("requirements.lock", "requirements-dev.lock", "requirements-bench.lock", "requirements-fuzz.lock"):
        other = locked(file)
        assert {name: other.get(name, found) for name, found in build.items()} == build, file


def test_every_image_of_compose_is_pinned_by_digest_under_the_tag_that_compose_has() -> None:
    text = (ROOT / "deploy/images.env").read_text()
    pinned = dict(re.findall(r"^(\w+)=(\S+)@sha256:[0-9a-f]{64}$", text, re.MULTILINE))
    asked = re.findall(r"\$\{(\w+_IMAGE):-([^}]+)\}", (ROOT / "docker-compose.yml").read_text())
    assert dict(asked) == pinned
    # That of the image itself by digest, whoever builds it.
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    assert re.findall(r"^ARG (PYTHON_IMAGE=.+)$", dockerfile, re.MULTILINE) == re.findall(
        "^PYTHON_IMAGE=.+$", text, re.MULTILINE
    )
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {"${PYTHON_IMAGE}"}


def test_each_container_has_no_more_rights_than_it_needs() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert services.keys() >= {"kafka", "redis", "learner", "scorer"}
    for name, one in services.items():
        assert one["cap_drop"] == ["ALL"], name
        assert one["security_opt"] == ["no-new-privileges:true"], name
        assert re.fullmatch(r"\d+[mg]", one["mem_limit"]), name
        # To this machine alone.
        assert all(port.startswith("127.0.0.1:") for port in one.get("ports", [])), name
    # Kafka's image writes its configuration into itself, and Grafana's what it was given.
    assert {name for name, one in services.items() if not one.get("read_only")} == {"kafka", "topics", "grafana"}
    assert "cap_add" not in services["learner"] | services["scorer"]


def test_redis_of_compose_asks_for_a_password_and_forgets_nobody() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    told = services["redis"]["command"]
    assert told[1] == "/run/secrets/redis.conf"
    assert {"redis.conf", "redis_password"} <= set(services["redis"]["secrets"])
    assert "requirepass" in (ROOT / "deploy/make_secrets.sh").read_text()
    assert told[told.index("--maxmemory-policy") + 1] == "noeviction"
    assert told[told.index("--appendonly") + 1] == "yes"
    for name in ("learner", "scorer"):
        assert "redis_password" in services[name]["secrets"]
        assert services[name]["environment"]["FRESHET_REDIS_PASSWORD_FILE"] == "/run/secrets/redis_password"


def test_compose_has_both_types_in_one_topic() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name in ("learner", "scorer"):
        settings = read_settings({k: str(v) for k, v in services[name]["environment"].items() if "FILE" not in k})
        assert settings.topics == ["events"]
