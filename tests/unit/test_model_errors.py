"""Whoever mistypes a model specification is told the key, the value and what was expected."""

from __future__ import annotations

import pytest

from learner.model.spec import ModelError, load_model

HEAD = 'name = "m"\n'
FEATURES = '[features]\nok = { kind = "numeric" }\n'
KINDS = (
    "expected 'numeric', 'category', 'multi', 'vector', 'bucket', 'boolean', 'hashed', 'age', 'time', 'cross' or "
    "'encoded'"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + FEATURES + 'x = { kind = "numerc" }', f"features.x.kind = 'numerc': {KINDS}"),
        (HEAD + FEATURES + "x = { kind = 3 }", f"features.x.kind = 3: {KINDS}"),
        (HEAD + FEATURES + "x = {}", f"features.x.kind is missing: {KINDS}"),
        (HEAD + FEATURES + "x = 3", "features.x = 3: expected a table, got int"),
        (HEAD + FEATURES + 'x = { kind = "category" }', "features.x.values is missing"),
        (HEAD + FEATURES + 'x = { kind = "vector", size = 0 }', "features.x.size = 0: expected int >= 1"),
        (HEAD + FEATURES + 'x = { kind = "category", values = ["a", 3] }', "features.x.values[1] = 3: expected str"),
        (
            HEAD + FEATURES + 'x = { kind = "numeric", men = 1 }',
            "features.x.men: no such key; there are kind, mean, std",
        ),
        (HEAD + FEATURES + '"a.b" = { kind = "num" }', f"features.a.b.kind = 'num': {KINDS}"),
        (HEAD + FEATURES + f'{"x" * 129} = {{ kind = "numeric" }}', "features: a name: expected str of length <= 128"),
        (HEAD + 'method = "adff"\n' + FEATURES, "method = 'adff': expected 'adf' or 'laplace'"),
        (HEAD + 'halflife = "3d"\n' + FEATURES, "halflife: no such key; there are name, features, covariance, method"),
        (HEAD + 'click_delay = "3s"\n' + FEATURES, "click_delay = '3s': expected a table, got str"),
        (HEAD + "[prior]\nvariance = -1.0\n" + FEATURES, "prior.variance = -1.0: expected float > 0.0"),
        (HEAD + "[prior]\nmeen = 1\n" + FEATURES, "prior.meen: no such key; there are mean, variance"),
        (HEAD + "[[prior.earlier]]\nvariance = 0\n" + FEATURES, "prior.earlier[0].variance = 0: expected float > 0.0"),
        (HEAD + "[[prior.earlier]]\nfile = 'p'\n" + FEATURES, "prior.earlier[0].file: no such key; there are mean"),
        (
            HEAD + FEATURES + 'page = { kind = "category", values = ["a"] }\n[quality]\nsegment = "page"',
            "quality.segment = 'page': expected a category with from = 'context'; the model has none",
        ),
        (
            HEAD + FEATURES + f'on = {{ kind = "category", values = {[*"abcdefghi"]}, from = "context" }}\n'
            '[quality]\nsegment = "on"',
            "quality.segment = 'on': 9 values: expected at most 8, since each is counted apart",
        ),
        (FEATURES, "name is missing"),
        (HEAD, "features is missing"),
    ],
)
def test_what_is_wrong_is_named_with_its_value_and_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(ModelError) as raised:
        load_model(text, "feed.toml")
    assert str(raised.value).startswith(f"feed.toml: {message}")
