"""The model that the settings name, read from its files."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from learner.model.duration import ModelError
from learner.model.experiment import Experiment, load_experiment
from learner.model.in_force import new_coefficients, with_prior
from learner.model.kind import some
from learner.model.prior_file import PriorFile, decode_prior
from learner.model.spec import Model, build_model, load_model
from learner.onnx_encoder import read_encoder


def read_model(path: str, prior: str = "", threads: int | None = 1, target: str = "") -> Model:
    """The model at a path, or the sample model if the path is empty; with the prior of a file, if there is one.

    With its encoder, if it has one, that runs in so many threads; None: without, for whoever is to make it. With a
    `target` the model of that alone, of which the prior then is.
    """
    model = _read_specification(path)
    declared, encoder = model.specification.encoder, None
    if declared is not None and threads is not None:
        # Where a specification names a file, it stands beside it.
        encoder = read_encoder(Path(path).parent / declared.file, declared, threads)
        # A new encoder is a new feature space.
        known = msgspec.structs.replace(declared, hash=encoder.hash)
        model = build_model(msgspec.structs.replace(model.specification, encoder=known))
    whole = replace(_with_prior(model, path, "" if target else prior), encoder=encoder)
    if not target:
        return replace(whole, targets={name: _with_prior(one, path) for name, one in whole.targets.items()})
    if target not in whole.targets:
        there = ", ".join(whole.targets) or f"[targets] in model {model.name!r}, which has none"
        raise ModelError(f"--target {target}: expected {there}")
    return _with_prior(whole.targets[target], path, prior)


def _with_prior(model: Model, path: str, prior: str = "") -> Model:
    file = _prior_file(model, path, prior)
    if file is None:
        return model
    fitted = _read_prior(file)
    complete = with_prior(model, fitted, str(file))
    if new := new_coefficients(complete, fitted):
        print(
            f"freshet: prior {str(file)!r} was fitted before {some(new)} came into the model: "
            "they have the prior of model.toml until the next `freshet fit`",
            file=sys.stderr,
        )
    return complete


def read_experiment(path: str) -> Experiment | None:
    """The experiment at a path; None if the path is empty."""
    if not path:
        return None
    try:
        return load_experiment(Path(path).read_text(encoding="utf-8-sig"), path)
    except (OSError, UnicodeDecodeError) as exc:
        raise ModelError(f"experiment {path!r}: cannot be read: {exc}") from exc


def read_prior(model: Model, path: str, prior: str = "") -> PriorFile | None:
    """The prior file that `read_model` puts in force of a model, if there is one."""
    file = _prior_file(model, path, prior)
    return None if file is None else _read_prior(file)


def _prior_file(model: Model, path: str, prior: str) -> Path | None:
    if prior:
        return Path(prior)
    # Where a specification names a file, it stands beside it.
    return None if model.prior_file is None else Path(path).parent / model.prior_file


def _read_prior(file: Path) -> PriorFile:
    try:
        data = file.read_bytes()
    except OSError as exc:
        raise ModelError(f"prior {str(file)!r}: cannot be read: {exc}") from exc
    return decode_prior(data, str(file))


def _read_specification(path: str) -> Model:
    if path:
        try:
            return load_model(Path(path).read_text(encoding="utf-8-sig"), path)
        except (OSError, UnicodeDecodeError) as exc:
            raise ModelError(f"model {path!r}: cannot be read: {exc}") from exc
    here = Path(__file__).parent
    # In a source tree the sample is the one in deploy/, of which a wheel has a copy.
    bundled = here / "sample_model.toml"
    sample = bundled if bundled.exists() else here.parent / "deploy" / "model.toml"
    return load_model(sample.read_text(encoding="utf-8"), "the sample model")
