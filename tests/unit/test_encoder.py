"""An encoder: what model.toml says of it, the files that are refused, and the rows that it makes."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from learner.batch.items import read_items
from learner.batch.raw import Reached
from learner.model.design import Shown
from learner.model.duration import ModelError
from learner.model.encoded_rows import encode
from learner.model.encoding import Encoder
from learner.model.in_force import new_coefficients, with_prior
from learner.model.kinds import FeatureError, ItemError
from learner.model.prior_file import PriorFile
from learner.model.spec import Model, load_model
from learner.onnx_encoder import hash_of
from service.commands.check import check_text
from service.model_file import read_model
from service.settings import Settings
from service.web.answers import describe_model
from tests.encoders import Field, Mlp

GENRES, IDS, D = ["drama", "comedy"], ["i1", "i2", "i3"], 6
FIELDS = [
    Field("price", "numeric", mean=20.0, std=8.0),
    Field("genre", "category", vocabulary=GENRES),
    Field("item_id", "id", vocabulary=IDS),
    Field("text", "vector", width=3),
    Field("age", "numeric", mean=40.0, std=10.0),
]
TOML = f"""
name = "m"
[features]
price = {{ kind = "numeric", mean = 20.0, std = 8.0 }}
deep = {{ kind = "encoded" }}
[encoder]
embedding = {D}
inputs = [
  {{ name = "price", kind = "numeric" }},
  {{ name = "genre", kind = "category", values = ["drama", "comedy"] }},
  {{ name = "item_id", kind = "id" }},
  {{ name = "text", kind = "vector", width = 3 }},
  {{ name = "age", kind = "numeric", from = "context" }},
]
"""
MLP = Mlp(FIELDS, [16, 16], D)
ITEMS: list[dict[str, Any]] = [
    {"price": 12.5, "genre": "drama", "text": [0.1, -2.0, 3.5]},
    {"price": 31, "genre": "western"},
    {"genre": "comedy", "text": None},
    {},
]
WHOSE = ["i1", "i3", "new", "i2"]
CONTEXT = {"age": 55.0}
# What float32 arithmetic is off by here, whatever the size of the batch.
BOUND = 1e-5


def written(folder: Path, toml: str = TOML, mlp: Mlp = MLP, **change: Any) -> Model:
    (folder / "model.toml").write_text(toml)
    mlp.write(folder / "encoder.onnx", **change)
    return read_model(str(folder / "model.toml"))


def encoder_of(model: Model) -> Encoder:
    assert model.encoder is not None
    return model.encoder


def of_numpy(items: list[dict[str, Any]] = ITEMS, ids: list[str] = WHOSE, mlp: Mlp = MLP) -> Any:
    return mlp.numpy([{**item, **CONTEXT, "item_id": one} for item, one in zip(items, ids, strict=True)])


def encoded(model: Model, items: Any = ITEMS, ids: list[str] = WHOSE) -> Any:
    return encode(model, ids, items, Shown([len(items)], [0], [CONTEXT]))


def test_rows_are_those_of_the_same_network_in_numpy(tmp_path: Path) -> None:
    model = written(tmp_path)
    np.testing.assert_allclose(encoded(model), of_numpy(), atol=BOUND)


def test_items_as_structs_tuples_and_dictionaries_have_the_same_rows(tmp_path: Path) -> None:
    model = written(tmp_path)
    assert model.structs is not None
    structs = [msgspec.convert(item, model.structs[0]) for item in ITEMS]
    expected = encoded(model).tobytes()
    assert encoded(model, structs).tobytes() == expected
    assert encoded(model, list(map(msgspec.structs.astuple, structs))).tobytes() == expected


def test_one_by_one_equals_a_batch_within_rounding(tmp_path: Path) -> None:
    model = written(tmp_path)
    rng = np.random.default_rng(0)
    items = [{"price": float(rng.normal(20, 8)), "text": rng.normal(size=3).tolist()} for _ in range(300)]
    ids = [f"i{i % 5}" for i in range(300)]
    alone = np.concatenate([encoded(model, [item], [one]) for item, one in zip(items, ids, strict=True)])
    together = encoded(model, items, ids)
    np.testing.assert_allclose(alone, together, atol=BOUND)
    np.testing.assert_allclose(together, of_numpy(items, ids), atol=BOUND)


def test_the_columns_of_the_feature_are_the_embedding(tmp_path: Path) -> None:
    model = written(tmp_path)
    shown = Shown([len(ITEMS)], [0], [CONTEXT])
    rows = model.rows(ITEMS, shown, encoded(model))
    assert model.coefficients == ("intercept", "price", *(f"deep[{i}]" for i in range(D)))
    assert rows[:, 2:].tobytes() == np.ascontiguousarray(encoded(model)).tobytes()
    assert rows[:, 0].tolist() == [1.0] * 4
    with pytest.raises(ValueError, match="expected `encoded`"):
        model.rows(ITEMS, shown)


def test_an_encoder_reads_its_inputs_in_any_order_of_the_features(tmp_path: Path) -> None:
    toml = TOML.replace('deep = { kind = "encoded" }', 'deep = { kind = "encoded" }\nlast = { kind = "numeric" }')
    model = written(tmp_path, toml.replace('name = "m"', 'name = "m"\ncovariance = "block"'))
    np.testing.assert_allclose(encoded(model), of_numpy(), atol=BOUND)
    rows = model.rows([{**item, "last": 3.0} for item in ITEMS], Shown([4], [0], [CONTEXT]), encoded(model))
    assert rows[:, model.coefficients.index("last")].tolist() == [3.0] * 4


def test_another_file_is_another_feature_space_and_the_same_file_is_not(tmp_path: Path) -> None:
    model = written(tmp_path)
    again = read_model(str(tmp_path / "model.toml"))
    assert (again.fingerprint, again.space) == (model.fingerprint, model.space)
    other = written(tmp_path, mlp=Mlp(FIELDS, [16, 16], D, seed=1))
    assert other.fingerprint != model.fingerprint
    of_old, of_new = ({c.name: c.meaning for c in one.space.columns} for one in (model, other))
    assert of_old["price"] == of_new["price"]
    assert of_old["deep[0]"] != of_new["deep[0]"]


def test_a_prior_of_another_encoder_is_refused_by_name_where_only_its_numbers_are_in_common(tmp_path: Path) -> None:
    alone = TOML.replace('price = { kind = "numeric", mean = 20.0, std = 8.0 }', "")
    for toml, refused in ((alone, True), (TOML, False)):
        old, new = (written(tmp_path, toml, Mlp(FIELDS, [16, 16], D, seed=seed)) for seed in (0, 1))
        prior = PriorFile(
            model_name="m", feature_space=old.fingerprint, space=old.space, population=old.population
        )  # fmt: skip
        if refused:
            its = encoder_of(old).hash
            with pytest.raises(ModelError, match=f"fitted for encoder {its}, and that of model 'm' is"):
                with_prior(new, prior)
        else:
            # What the other features have stays; the embedding's is that of model.toml.
            assert new_coefficients(with_prior(new, prior), prior) == [f"deep[{i}]" for i in range(D)]


def test_an_encoder_of_offsets_alone_leaves_the_feature_space_as_it_is(tmp_path: Path) -> None:
    toml = TOML.replace('deep = { kind = "encoded" }', "")
    models = [written(tmp_path, toml, Mlp(FIELDS, [8], D, True, seed)) for seed in (0, 1)]
    assert models[0].fingerprint == models[1].fingerprint
    assert models[0].coefficients == ("intercept", "price")
    assert encoder_of(models[0]).has_offset


def test_a_hash_that_is_declared_is_the_only_one_taken(tmp_path: Path) -> None:
    model = written(tmp_path)
    its = encoder_of(model).hash
    assert its == hash_of(tmp_path / "encoder.onnx")
    pinned = TOML.replace("[encoder]", f'[encoder]\nhash = "{its}"')
    assert written(tmp_path, pinned).fingerprint == model.fingerprint
    with pytest.raises(ModelError, match=rf"hash [0-9a-f]{{16}}: expected {its}, as encoder.hash says"):
        written(tmp_path, pinned, Mlp(FIELDS, [16, 16], D, seed=1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("embedding = 6", "embedding = 129", r"encoder.embedding = 129: expected int <= 128"),
        ("embedding = 6", "", r"encoder.embedding is missing"),
        ('kind = "id"', 'kind = "ids"', r"encoder.inputs\[2\].kind = 'ids': expected 'numeric', .* 'vector' or"),
        (", width = 3", "", r"encoder.inputs\[3\].width = None: expected how many numbers"),
        ('kind = "id"', 'kind = "id", width = 3', r"encoder.inputs\[2\].width = 3: expected none"),
        ('"comedy"]', '"drama"]', r"encoder.inputs\[1\].values = .*: expected each value once"),
        ('kind = "id"', 'kind = "id", values = ["a"]', r"encoder.inputs\[2\].values = .*: expected none"),
        ('kind = "id"', 'kind = "id", from = "context"', r"encoder.inputs\[2\].from = 'context': expected 'item'"),
        ('"price", kind', '"age", kind', r"encoder.inputs\[4\].name = 'age': expected another name"),
        ('"price", kind', '"offset", kind', r"encoder.inputs\[0\].name = 'offset': expected another .* are outputs"),
        ("inputs = [", "input = [", r"encoder.input: no such key; there are embedding, inputs, file, hash"),
        ("[encoder]", '[encoder]\nhash = "12"', r"encoder.hash = '12': expected str matching"),
        ('"price", kind = "numeric"', '"price", kind = "category"', r"encoder.inputs\[0\].kind = 'category': expected"),
        ('"price", kind', '"price", from = "catalog", kind', r"encoder.inputs\[0\].from = 'catalog': expected 'item'"),
        ('"price", kind', '"deep", kind', r"encoder.inputs\[0\].kind = 'numeric': expected one that takes the JSON"),
        ('{ kind = "encoded" }', '{ kind = "encoded", from = "context" }', r"features.deep.from = 'context'"),
        ("[encoder]", 'two = { kind = "encoded" }\n[encoder]', r"features.two = .*one feature of this kind, and"),
        ("[encoder]\n", "[other]\n", r"other: no such key"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_model_toml_is_named(old: str, new: str, message: str) -> None:
    assert old in TOML
    with pytest.raises(ModelError, match=message):
        load_model(TOML.replace(old, new, 1))


def test_an_encoded_feature_wants_an_encoder() -> None:
    with pytest.raises(ModelError, match=r"features.deep: expected an \[encoder\]"):
        load_model(TOML.partition("[encoder]")[0])


def tensor(name: str, *shape: Any, of: Any = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, of, shape)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(TOML)
    with pytest.raises(ModelError, match=r"encoder.onnx': no such file: expected what `freshet train-encoder` writes"):
        read_model(str(tmp_path / "model.toml"))
    for data in (b"", b"PK\3\4 a zip", bytes(1000)):
        (tmp_path / "encoder.onnx").write_bytes(data)
        with pytest.raises(ModelError, match=r"encoder.onnx': expected an ONNX model that onnxruntime [\d.]+ runs"):
            read_model(str(tmp_path / "model.toml"))


@pytest.mark.parametrize("change", [{"opset": 99}, {"ir_version": 99}])
def test_an_opset_that_is_newer_than_the_runtime_is_refused(tmp_path: Path, change: Any) -> None:
    with pytest.raises(ModelError, match=r"runs, of no newer opset: .*(opset|IR version)"):
        written(tmp_path, **change)


@pytest.mark.parametrize(
    ("fields", "toml", "message"),
    [
        (FIELDS[:-1], TOML, r"its inputs are 'price', 'genre', 'item_id', 'text': expected 'price', .*, 'age'"),
        ([*FIELDS, Field("extra", "numeric")], TOML, r"its inputs are .*'extra': expected"),
        ([*FIELDS[:3], Field("text", "vector", width=4), FIELDS[4]], TOML,
         r"input 'text': is tensor\(float\) of \['n', 4\]: expected tensor\(float\) of \['n', 3\], of kind 'vector'"),
        ([Field("price", "category", vocabulary=["a"]), *FIELDS[1:]], TOML,
         r"input 'price': is tensor\(int64\) of \['n'\]: expected tensor\(float\) of \['n'\], of kind 'numeric'"),
        ([FIELDS[0], Field("genre", "category", vocabulary=["comedy", "drama"]), *FIELDS[2:]], TOML,
         r"its vocabulary of 'genre' has 2 values that are not the 2 of encoder.inputs"),
        (FIELDS, TOML.replace("embedding = 6", "embedding = 5"),
         r"output 'embedding': is tensor\(float\) of \['n', 6\]: expected tensor\(float\) of \['n', 5\]"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_as_declared_is_refused(tmp_path: Path, fields: Any, toml: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        written(tmp_path, toml, Mlp(fields, [8], D))


def test_a_graph_of_a_fixed_number_of_items_is_refused(tmp_path: Path) -> None:
    declared = list(MLP.model().graph.input)
    with pytest.raises(ModelError, match=r"input 'price': is tensor\(float\) of \[100\]"):
        written(tmp_path, inputs=[tensor("price", 100), *declared[1:]])


def test_a_graph_that_leaves_nan_as_it_is_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Unsqueeze", ["price", "axis"], ["embedding"])]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, "g", [tensor("price", "n")], [tensor("embedding", "n", 1)], [axis])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (tmp_path / "encoder.onnx").write_bytes(made.SerializeToString())
    toml = 'name = "m"\n[features]\ndeep = { kind = "encoded" }\n[encoder]\nembedding = 1\n'
    (tmp_path / "model.toml").write_text(f'{toml}inputs = [{{ name = "price", kind = "numeric" }}]')
    with pytest.raises(ModelError, match=r"NaN or infinite for an item of which everything is missing"):
        read_model(str(tmp_path / "model.toml"))


def test_a_file_without_metadata_needs_every_vocabulary_declared(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no vocabulary of 'item_id': expected one in its metadata"):
        written(tmp_path, metadata=False)
    toml = TOML.replace('  { name = "item_id", kind = "id" },\n', "")
    mlp = Mlp([one for one in FIELDS if one.kind != "id"], [8], D)
    model = written(tmp_path, toml, mlp, metadata=False)
    np.testing.assert_allclose(encoded(model), of_numpy(mlp=mlp), atol=BOUND)


def test_without_onnxruntime_the_extra_is_named(tmp_path: Path) -> None:
    written(tmp_path)
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from service.model_file import read_model\n"
        f"try: read_model({str(tmp_path / 'model.toml')!r})\n"
        "except ValueError as exc: print(exc)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'freshet-online[deep]'" in said.stdout


def test_a_model_without_an_encoder_never_imports_onnxruntime() -> None:
    code = "import sys, service.commands.run, service.worker, service.web.app; print('onnxruntime' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False"]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"price": "12"}, "expected a number, got a string"),
        ({"genre": 7}, "expected a string, got a number"),
        ({"text": [1.0, 2.0]}, "expected a list of 3 numbers, got 2 values"),
        ({"text": [1.0, 2.0, "x"]}, "expected a list of 3 numbers"),
    ],
)
def test_what_an_encoder_cannot_read_names_the_item_and_the_field(tmp_path: Path, item: Any, message: str) -> None:
    model = written(tmp_path)
    (name,) = item
    for call in (encoded, lambda model, items, _: model.design.check(items, Shown([2], [0], [CONTEXT]))):
        with pytest.raises(FeatureError, match=message) as raised:
            call(model, [{}, item], ["i1", "i2"])
        assert raised.value.field == f"items[1].features.{name}"


def test_an_item_of_which_no_finite_number_is_made_is_refused(tmp_path: Path) -> None:
    # Beyond float32 once it is divided.
    model = written(tmp_path, mlp=Mlp([Field("price", "numeric", std=1e-12), *FIELDS[1:]], [16], D))
    with pytest.raises(ItemError, match=r"items\[1\]: what encoder [0-9a-f]{16} makes of it is not finite") as raised:
        encoded(model, [{}, {"price": 1e30}], ["i1", "i2"])
    assert (raised.value.reason, raised.value.field) == ("non_finite_number", "items[1]")


KEPT = TOML.replace(', from = "context"', ', from = "catalog"').replace(
    'kind = "category"', 'from = "catalog", kind = "category"'
)
KEPT = KEPT.replace('"vector", width = 3', '"vector", width = 3, from = "catalog"')
KEPT = KEPT.replace('price = { kind = "numeric"', 'price = { kind = "numeric", from = "catalog"')
KEPT = KEPT.replace('"price", kind', '"price", from = "catalog", kind')


def counted(model: Model) -> list[int]:
    """How many items each run of a model's encoder is of, from now on."""
    encoder = encoder_of(model)
    runs, run = list[int](), encoder.run

    def counting(tensors: Any) -> Any:
        runs.append(len(next(iter(tensors.values()))))
        return run(tensors)

    object.__setattr__(encoder, "run", counting)
    return runs


def test_what_is_of_the_catalog_alone_is_encoded_once(tmp_path: Path) -> None:
    model = written(tmp_path, KEPT)
    runs = counted(model)
    items = [{**item, **CONTEXT} for item in ITEMS]
    first = encode(model, WHOSE, items)
    assert first is not None
    assert runs == [4]
    again = encode(model, [*WHOSE, "i2"], [*items, items[0]])
    assert again is not None
    # The fifth has another id, and so is another item.
    assert runs == [4, 1]
    assert again[:4].tobytes() == first.tobytes()
    changed = encode(model, WHOSE, [{**items[0], "price": 13.0}, *items[1:]])
    assert changed is not None
    assert runs == [4, 1, 1]
    np.testing.assert_allclose(changed, of_numpy([{**ITEMS[0], "price": 13.0}, *ITEMS[1:]]), atol=BOUND)


def test_what_depends_on_the_request_is_encoded_each_time(tmp_path: Path) -> None:
    model = written(tmp_path)
    runs = counted(model)
    for _ in range(2):
        encoded(model)
    assert runs == [4, 4]


def test_rows_that_are_kept_are_bounded_in_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.model.encoding.MAX_KEPT_BYTES", 5_000)
    model = written(tmp_path, KEPT)
    for i in range(200):
        items = [{"price": float(i + k)} for k in range(4)]
        np.testing.assert_allclose(
            encode(model, WHOSE, items), MLP.numpy([{**a, "item_id": b} for a, b in zip(items, WHOSE, strict=True)]),
            atol=BOUND,
        )  # fmt: skip
        kept = encoder_of(model)._kept.rows
        assert sum(len(key) + len(row) for key, row in kept.items()) <= 5_000


def test_a_model_goes_to_other_processes_with_its_encoder(tmp_path: Path) -> None:
    model = written(tmp_path)
    expected = encoded(model)
    there = pickle.loads(pickle.dumps(model))
    assert encoded(there).tobytes() == expected.tobytes()


FORKED = """
import os, sys
from pathlib import Path
from service.model_file import read_model
from tests.unit.test_encoder import encoded

model = read_model(sys.argv[1], threads=int(sys.argv[2]))
expected = encoded(model).tobytes()
read, write = os.pipe()
if not (pid := os.fork()):
    os.write(write, encoded(model).tobytes())
    os._exit(0)
assert os.read(read, len(expected)) == expected
assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_fork_encodes_as_its_parent_does(tmp_path: Path, threads: int) -> None:
    written(tmp_path)
    # In a process of its own: what other tests have imported has threads, which no fork survives.
    command = [sys.executable, "-c", FORKED, str(tmp_path / "model.toml"), str(threads)]
    subprocess.run(command, check=True, timeout=60, cwd=Path(__file__).parents[2])


def test_a_table_of_items_has_inputs_of_the_catalog_as_text(tmp_path: Path) -> None:
    model = written(tmp_path, KEPT)
    table = tmp_path / "items.csv"
    table.write_text("item_id,price,genre,text,age\ni1,9.5,drama,1|2|3.5,\ni2,,,,40\n")
    found = [msgspec.to_builtins(row.item) for row in read_items(str(table), model, Reached())]
    assert [(one["item_id"], one["features"]) for one in found] == [
        ("i1", {"price": 9.5, "genre": "drama", "text": [1.0, 2.0, 3.5]}), ("i2", {"age": 40.0}),
    ]  # fmt: skip


def test_check_and_get_model_say_what_the_encoder_is(tmp_path: Path) -> None:
    model = written(tmp_path, KEPT, Mlp(FIELDS, [16, 16], D, with_offset=True))
    encoder = encoder_of(model)
    text = check_text(Settings(), model)
    assert f"{encoder.hash}: 6 numbers and the offset of price (numeric), genre (category), item_id (id)" in text
    assert "us an item" in text
    assert "kept by item" in text
    told = describe_model(model).encoder
    assert told is not None
    assert (told.hash, told.embedding, told.offset) == (encoder.hash, D, True)
    assert told.inputs == ["price", "genre", "item_id", "text", "age"]
