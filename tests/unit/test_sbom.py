"""`make sbom` lists what an image's environment holds."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.freshet import ROOT


def test_the_sbom_is_valid_and_has_each_locked_package_with_its_hashes(tmp_path: Path) -> None:
    made = tmp_path / "sbom.json"
    # `make test` runs this below a make, whose variables would have this one print directories as well.
    alone = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    command = ["make", "-n", "-o", ".venv-docs/installed", "sbom"]
    printed = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=True).stdout
    rule = printed.replace("\\\n", " ")
    typed = shlex.split(rule[rule.index(".venv-docs/bin/cyclonedx-py") :])
    command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", *typed[1:]]
    command[command.index("--output-file") + 1] = str(made)
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(made.read_text()) is None
    sbom = json.loads(made.read_text())
    assert validator.validate_str(made.read_text().replace('"library"', '"book"')) is not None
    lock = (ROOT / "requirements.lock").read_text()
    # Of a package with two lines the image's Python takes one.
    locked = [
        (name, version, hashes.count("--hash=sha256:"))
        for name, version, hashes in re.findall(r"^([\w.-]+)==(\S+)(.*(?:\n    .*)*)", lock, re.MULTILINE)
    ]
    assert len(locked) == len([line for line in lock.splitlines() if line[:1] not in " #"])
    listed = [
        (one["name"], one["version"], sum(len(each["hashes"]) for each in one["externalReferences"]))
        for one in sbom["components"]
    ]
    assert sorted(listed) == sorted(locked)
    assert sbom["metadata"]["component"]["name"] == "freshet-online"
