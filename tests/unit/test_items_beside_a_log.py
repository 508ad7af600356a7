"""`--items`: a log at rest, and what its items leave to a catalog in a table beside it."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import pytest

from service.commands.main import main
from tests.shop import write_shop

MODEL = """
name = "shop"
[features]
price = { kind = "numeric", from = "catalog", transform = "log1p", scale = "fit" }
rating = { kind = "numeric", from = "catalog" }
[events]
type = "event"
user_id = "ctx.uid"
timestamp = "ts"
request_id = "ctx.sid"
click = { when = "click", item_id = "pid" }
impression = { when = "view", items = "results", item_id = "pid", features = { price = "paid" } }
[catalog]
item_id = "sku"
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder, n_items=80, n_users=20, n_views=300)
    (folder / "model.toml").write_text(MODEL)
    # Columns are called as they are in no event.
    table = folder / "items.csv"
    table.write_text(table.read_text().replace("pid,", "sku,", 1))
    return folder


def shown_prices(folder: Path) -> list[float]:
    with (folder / "items.csv").open() as table:
        price = {row["sku"]: float(row["price"]) for row in csv.DictReader(table)}
    events = map(json.loads, (folder / "events.ndjson").read_text().splitlines())
    return [price[item["pid"]] for event in events for item in event.get("results", [])]


def test_a_log_is_fitted_and_evaluated_with_what_a_table_says_of_its_items(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, model = str(shop / "events.ndjson"), ["--model", str(shop / "model.toml")]
    items, prior = ["--items", str(shop / "items.csv")], str(shop / "prior.npz")
    assert main(["fit", log, *items, *model, "--out", prior, "--iterations", "2", "--keep-half-life"]) == 0
    found = re.search(r"features.price: found mean = ([\d.]+)", capsys.readouterr().out)
    assert found is not None
    logs = [math.log1p(one) for one in shown_prices(shop)]
    assert float(found[1]) == pytest.approx(sum(logs) / len(logs), rel=1e-4)
    numbers = shop / "numbers.json"
    evaluate = ["evaluate", log, *model, "--prior", prior, "--brief", "--resamples", "5", "--json", str(numbers)]
    area = []
    for more in (items, []):
        assert main([*evaluate, *more]) == 0
        area.append(json.loads(numbers.read_text())["ways"]["fresh"]["all"]["slate_auc"]["value"])
    # Who likes what is dear can be told where prices are known; without, nothing tells items apart.
    assert area[0] > 0.6
    assert area[1] == 0.5


def test_a_log_whose_items_leave_all_to_the_catalog_asks_for_a_table(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shop / "given.toml").write_text(MODEL.replace(', scale = "fit"', ""))
    typed = ["fit", str(shop / "events.ndjson"), "--model", str(shop / "given.toml"), "--out", str(shop / "p.npz")]
    assert main(typed) == 2
    assert "expected every feature in the log, or price, rating with --items in a table" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["fit", "--out", "p.npz"], ["evaluate"]])
def test_a_table_of_items_is_refused_where_there_is_no_catalog(
    shop: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    plain = MODEL.partition("[catalog]")[0].replace(', scale = "fit"', "").replace(', from = "catalog"', "")
    (shop / "none.toml").write_text(plain)
    log, table = str(shop / "events.ndjson"), str(shop / "items.csv")
    assert main([*command, log, "--items", table, "--model", str(shop / "none.toml")]) == 2
    assert "--items: model 'shop' has no catalog" in capsys.readouterr().err
