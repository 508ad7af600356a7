"""`freshet train-encoder`: the deep model of `[encoder]`, from a log."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from learner.model.spec import Model
from service.commands.logs import (
    LogArguments,
    add_anchor_arguments,
    add_arguments,
    check_items,
    share,
    skipping,
    tables_of_logs,
    write_output,
)
from service.progress import progress
from service.settings import Settings, SettingsError

if TYPE_CHECKING:
    from learner.deep.fitting import Fitting
    from learner.deep.state import Trained
    from learner.deep.training import State

STATE, CHECKPOINT = "encoder.npz", "encoder.checkpoint.npz"
# Of a first log, and of one beside what is known, where large steps would first forget.
RATE, RATE_BESIDE = 2e-3, 5e-4
SMALLEST, SMALLEST_BESIDE = 32, 256
# As of `learner.deep.increment`, which is imported with JAX.
RIDGE = 30.0
_EXTRA = "pip install 'freshet-online[train]'"


class TrainArguments(LogArguments):
    """What was typed."""

    out: str | None
    previous: str | None
    cold: str | None
    cold_weight: float
    keep: float
    strength: float
    hidden: tuple[int, ...] | None
    epochs: int
    patience: int
    learning_rate: float | None
    held_out: float
    ridge: float
    no_users: bool
    target: str | None


def declare(parser: argparse.ArgumentParser) -> None:
    """Say what it is, and what it takes."""
    parser.description = (
        "Train the deep model that [encoder] in the model declares: embeddings of ids and categories, numbers, "
        "vectors, an MLP. It learns the log-odds of a click, beside the log's own offsets where there are some, from "
        "the outcomes that `freshet fit` takes. Written are an ONNX file, under the name that the model has for it, "
        f"which scorers and learners run, and {STATE}, from which --previous goes on with the next log alone. Without "
        "--previous it is a cold start. After each epoch a checkpoint is kept: when it is killed, the same line goes "
        f"on where it was. It needs {_EXTRA}."
    )
    parser.add_argument(
        "--out", metavar="DIR", help="where the files go (default: beside the model, in the place of those in force)"
    )
    parser.add_argument(
        "--previous", metavar="FILE",
        help=f"{STATE} of the logs before: its weights count for as much as all outcomes they were learnt from, and "
        "the log given is learnt beside them. New items and categories begin as the unknown; vocabularies grow",
    )  # fmt: skip
    add_anchor_arguments(parser, "the cold start that it descends from")
    parser.add_argument(
        "--lambda", dest="strength", type=_positive, default=1.0, metavar="NUMBER",
        help="with --previous: how heavily what is known counts in this training; 0 only starts from its weights "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--hidden", type=_widths, metavar="N,N",
        help="hidden layers of a cold start, and how wide they are (default: 64,64)",
    )  # fmt: skip
    parser.add_argument("--epochs", type=_count, default=10, help="passes over the log, at most (default: %(default)s)")
    parser.add_argument(
        "--patience", type=_count, default=3,
        help="so many epochs without a lower loss on users held out end it (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--held-out", type=share, default=0.1, metavar="SHARE",
        help="the share of users who are not learnt from but say when to stop; with 0 all epochs are gone through "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--learning-rate",
        type=_above_0,
        help=f"of Adam, at first (default: {RATE:g}, with --previous {RATE_BESIDE:g})",
    )
    parser.add_argument(
        "--ridge", type=_above_0, default=RIDGE,
        help="the prior precision of a weight of which no log has said anything; rare items differ less from the "
        "unknown where it is higher (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--no-users", action="store_true",
        help="train for what all users like alike. Without, each outcome is predicted by what the last layer of its "
        "user knows from their outcomes before, so that the embedding is made of what users differ in",
    )  # fmt: skip
    # That it is refused is told better than that there is none.
    parser.add_argument("--target", help=argparse.SUPPRESS)
    add_arguments(parser)


def run(arguments: TrainArguments, settings: Settings, model: Model) -> int:
    """Train, and write the encoder and what the next training goes on from."""
    try:
        import jax  # noqa: F401
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import optax  # noqa: F401
    except ImportError as exc:
        raise SettingsError(f"train-encoder: {exc.name} is not installed: expected {_EXTRA}") from exc
    from learner.deep.fitting import Before, finish, prepare
    from learner.deep.gather import check_same, gather
    from learner.deep.reading import declared, view
    from learner.deep.state import encode_trained
    from learner.deep.training import Options

    if arguments.previous is None and (
        arguments.cold is not None or (arguments.keep, arguments.strength) != (1.0, 1.0)
    ):
        raise ValueError("--keep, --lambda, --cold: expected --previous beside them, which is kept or blended")
    if arguments.target is not None:
        raise ValueError(
            f"--target {arguments.target}: expected none: an encoder is trained on clicks, of which its offset is the "
            "log-odds; targets have its embedding, and a fixed effect and beliefs of their own on it"
        )
    if arguments.held_out >= 1.0:
        raise ValueError(f"--held-out {arguments.held_out}: expected less than 1: something has to be learnt from")
    seen = view(model)
    check_items(arguments, model)
    out = Path(settings.model).parent if arguments.out is None else Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    previous, cold = _trained(arguments.previous), _trained(arguments.cold)
    for one, source in ((previous, arguments.previous), (cold, arguments.cold)):
        if one is not None:
            check_same(seen, one, str(source))
    before = Before(previous, cold, arguments.strength, arguments.keep, arguments.cold_weight, arguments.ridge)
    hidden = _hidden(arguments.hidden, previous)
    rate = arguments.learning_rate or (RATE if previous is None else RATE_BESIDE)
    smallest = SMALLEST if previous is None else SMALLEST_BESIDE
    options = Options(arguments.epochs, arguments.patience, rate, arguments.seed, smallest)
    window = 1 if arguments.no_users else None
    skipped = skipping(arguments)
    with tables_of_logs(arguments, settings, seen, skipped) as tables:
        gathered = gather(tables, seen, hidden, arguments.held_out, window, previous)
    outcomes = gathered.outcomes
    if not len(gathered.learnt):
        raise ValueError(f"{' '.join(arguments.logs)}: no outcomes to learn from: expected impressions")
    if previous is not None and previous.with_offset == bool(outcomes.n_offsets):
        had, has = ("without", "with") if previous.with_offset else ("with", "without")
        raise ValueError(
            f"{arguments.previous}: was trained on logs {had} offsets, and this one is {has}: expected the same"
        )
    clicked = outcomes.n_clicked / len(outcomes)
    held_out = f"{gathered.held_out.n_outcomes:,} held out"
    print(f"{len(outcomes):,} outcomes of {outcomes.n_users:,} users, {clicked:.3f} clicked; {held_out}")
    for name, values in gathered.vocabulary.items():
        new = "" if previous is None else f", {len(values) - len(previous.vocabulary[name]):,} of them new"
        print(f"encoder.inputs {name}: {len(values):,} values{new}")
    fitting = prepare(gathered, before, options)
    state = _train(fitting, out / CHECKPOINT, arguments.seed)
    data, trained = finish(fitting, state)
    # Beside the model it stands where the model has it.
    name = declared(model).file
    file = out / (name if arguments.out is None else Path(name).name)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_output("--out", str(file), data)
    write_output("--out", str(out / STATE), encode_trained(trained))
    (out / CHECKPOINT).unlink(missing_ok=True)
    print(f"wrote {file}, encoder {trained.encoder}, opset checked against JAX; and {out / STATE}")
    if skipped is not None:
        print(skipped)
    return 0


def _train(fitting: Fitting, checkpoint: Path, seed: int) -> State:
    """Train from the start, or from the checkpoint of the same training, and keep one after each epoch."""
    from learner.deep.fitting import run
    from learner.deep.state import decode_checkpoint, encode_checkpoint

    state = fitting.start
    if checkpoint.exists():
        found = decode_checkpoint(checkpoint.read_bytes(), str(checkpoint), fitting.of)
        said = "is of another training: begins anew" if found is None else f"goes on after epoch {found.epoch}"
        print(f"{checkpoint}: {said}")
        state = found or state
    epochs, n = fitting.options.epochs, fitting.gathered.learnt.n_outcomes
    held_out = bool(len(fitting.gathered.held_out))
    with progress("training, at most", " outcomes", epochs * n) as bar:
        bar.update(state.epoch * n)

        def observe(state: State) -> None:
            write_output("--out", str(checkpoint), encode_checkpoint(state, fitting.of))
            if held_out:
                best = f"at best {state.best_loss:.5f}, after epoch {state.best_epoch}"
                bar.write(f"epoch {state.epoch}: held-out log loss {best}")

        if held_out and not state.epoch:
            bar.write(f"before: held-out log loss {state.best_loss:.5f}")
        return run(fitting, state, bar.update, observe)


def _trained(file: str | None) -> Trained | None:
    from learner.deep.state import decode_trained

    if file is None:
        return None
    try:
        return decode_trained(Path(file).read_bytes(), file)
    except OSError as exc:
        raise ValueError(f"encoder {file!r}: cannot be read: {exc}") from exc


def _hidden(typed: tuple[int, ...] | None, previous: Trained | None) -> tuple[int, ...]:
    if previous is None:
        return (64, 64) if typed is None else typed
    had = previous.network.hidden
    if typed not in (None, had):
        raise ValueError(f"--hidden: --previous has {','.join(map(str, had))}: expected the same, or a cold start")
    return had


def _widths(text: str) -> tuple[int, ...]:
    """The type of `--hidden`.

    >>> _widths("128,64")
    (128, 64)
    """
    widths = tuple(int(one) for one in text.split(",")) if text else ()
    if not all(1 <= one <= 4096 for one in widths):
        raise argparse.ArgumentTypeError(f"{text!r}: expected widths from 1 to 4096 with commas between them, as 64,64")
    return widths


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1 or more")
    return number


def _positive(text: str) -> float:
    if not 0.0 <= (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a finite number, 0 or more")
    return number


def _above_0(text: str) -> float:
    if not (number := _positive(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected more than 0")
    return number
