"""What `freshet check` says that a model costs is what its records have, and what cannot fit is refused."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from learner.limits import MAX_RECORD_BYTES
from learner.model.duration import ModelError
from learner.model.effect import Effect
from learner.model.spec import load_model
from learner.record import encode_record, fresh_record
from learner.record.layout import HEADER_BYTES, LONG_HEADER_BYTES, OUTCOME
from service.commands.check import check_text
from service.footprint import footprint
from service.settings import Settings
from service.verification import Verdict, verify


@pytest.mark.parametrize("covariance", ["full", "block", "diagonal"])
@pytest.mark.parametrize("head", ["", '[effects.user]\nfeatures = ["v"]\n'])
def test_a_record_has_as_many_bytes_as_are_told(covariance: str, head: str) -> None:
    text = f'name = "m"\ncovariance = "{covariance}"\n{head}[effects.item]\nfeatures = ["w"]\n[features]\n'
    model = load_model(f'{text}v = {{ kind = "hashed", buckets = 9 }}\nw = {{ kind = "vector", size = 4 }}\n')
    assert model.item is not None
    effects: list[Effect] = [model, model.item]
    for effect in effects:
        told, record = footprint(effect), fresh_record(effect)
        assert len(encode_record(record, effect)) == told.record
        many = record._replace(outcomes=np.zeros(6, OUTCOME), rows=np.zeros((6, effect.width), np.float32))
        many.outcomes["key"] = np.arange(6)
        # Its header is longer, and both lengths are multiples of 8.
        more = LONG_HEADER_BYTES - HEADER_BYTES
        assert abs(len(encode_record(many, effect)) - told.record - more - 6 * told.open_impression) < 8
    text = check_text(Settings(), model)
    assert f"{footprint(model).record:,} bytes each" in text
    assert f"{footprint(model.item).record:,} bytes each" in text


def test_full_covariance_of_many_values_is_warned_of_and_a_block_advised() -> None:
    text = 'name = "m"\ncovariance = "{}"\n[features]\nh = {{ kind = "hashed", buckets = 1000 }}\n'
    text += 'v = {{ kind = "vector", size = 9 }}\n'
    models = {one: load_model(text.format(one)) for one in ("full", "block", "diagonal")}
    full, block, diagonal = map(footprint, models.values())
    assert full.record == pytest.approx(4 * (1010 + 1010 * 1011 / 2), rel=0.001)
    assert diagonal.record < block.record < diagonal.record + 4 * 9 * 10
    assert block.record < 9_000
    assert full.outcome_us > 50 * block.outcome_us
    said = f"covariance = 'block': {block.record:,} bytes, {block.outcome_us:.2g} us; covariance = 'diagonal': "
    assert said in check_text(Settings(), models["full"])
    warning = next(one for one in verify(Settings(), models["full"]) if one.subject == "covariance")
    assert warning.verdict == Verdict.WARNING
    assert warning.text.startswith(
        f"full of 1,010 coefficients takes {full.record:,} bytes for every user's belief; cov"
    )
    for other in ("block", "diagonal"):
        assert "covariance = '" not in check_text(Settings(), models[other])
        assert next(islice(verify(Settings(), models[other]), 1, None)).subject == "API key"


@pytest.mark.parametrize(
    ("features", "head", "told"),
    [
        ('kind = "hashed", buckets = 4096', "", "features: a record would have 36.0 MiB: 32.0 for 4,097 coefficients"),
        ('kind = "vector", size = 4096', 'covariance = "diagonal"\nmax_open = 65536\n',
         "features: a record would have 1,024.3 MiB: 0.0 for 4,097 coefficients with covariance = 'diagonal'"),
        ('kind = "vector", size = 4096', 'covariance = "diagonal"\n[effects.item]\nfeatures = ["x"]\n',
         "effects.item.features: a record would have 36.0 MiB"),
    ],
)  # fmt: skip
def test_a_model_whose_records_cannot_fit_is_refused_before_anything_is_made(
    features: str, head: str, told: str
) -> None:
    with pytest.raises(ModelError) as raised:
        load_model(f'name = "m"\n{head}[features]\nx = {{ {features} }}\n')
    assert told in str(raised.value)
    assert f"expected at most {MAX_RECORD_BYTES >> 20} MiB" in str(raised.value)
