"""`freshet fit --from-store`: the prior of the users whose beliefs a store has, without a log."""

from __future__ import annotations

from pathlib import Path

import msgspec

from learner.batch.increment import known_from
from learner.batch.stored import MIN_ITEMS, collect_evidence, fit_stored_item_prior, fit_stored_prior
from learner.batch.users import chosen
from learner.belief.population import Population
from learner.model.crowd import Crowd
from learner.model.prior_file import Evidence, PriorFile, fitted_prior
from learner.model.spec import Model
from learner.record import RecordError
from learner.store.sqlite import file_of
from learner.store.versions import Versions
from service.commands.fit import FitArguments, say_prior_of_items, told, write_prior
from service.environment import hide_password
from service.model_file import read_prior
from service.progress import progress
from service.settings import Settings, SettingsError
from service.shadows import name_beside, open_store_of


def fit_from_store(arguments: FitArguments, settings: Settings, model: Model) -> int:
    """Refit the prior from stored beliefs, and write it with all that is in force beside it."""
    if arguments.logs or arguments.since is not None or arguments.until < 1.0:
        raise ValueError("--from-store: expected no LOG, --since or --until beside it: beliefs have no log's times")
    # A model whose scales or edges are still to be found has no records.
    _ = model.width
    if arguments.from_store:
        settings = msgspec.structs.replace(settings, store=arguments.from_store)
    scheme, _, path = settings.store.partition(":///")
    if scheme == "sqlite" and not Path(file := file_of(path, name_beside(model))).exists():
        raise SettingsError(f"--from-store: {file!r}: no such file")
    refused: list[RecordError] = []
    refuse = refused.append if arguments.skip_bad else None
    store = open_store_of(settings, model)
    try:
        Versions(store, model).look()
        with progress("reading", " records") as bar:
            evidence = collect_evidence(
                store.scan(),
                model,
                lambda user_id: chosen(user_id, arguments.sample, arguments.seed),
                refuse,
                bar.update,
            )
            of_items = (
                None
                if model.item is None
                else collect_evidence(store.scan("item"), model.item, refuse=refuse, advance=bar.update)
            )
    finally:
        store.close()
    if not len(evidence):
        raise ValueError(f"{hide_password(settings.store)}: no user in it of whom anything is learnt")
    before = read_prior(model, settings.model, settings.prior)
    with progress("EM", " users") as bar:
        bar.write(f"{len(evidence):,} users of whom something is learnt")
        users = fit_stored_prior(evidence, model.prior, arguments.iterations, told(bar.write), bar.update)
        item = None
        if model.item is not None and of_items is not None:
            bar.write(f"{len(of_items):,} items of which something is learnt; {MIN_ITEMS} are needed")
            prior_of_items = fit_stored_item_prior(of_items, model.item.prior, bar.update)
            say_prior_of_items(model.item, prior_of_items)
            half_life = before.item.half_life if before is not None and before.item is not None else None
            item = fitted_prior(model.item, Population(prior_of_items, model.item.fixed_effect), half_life)
    population = Population(users.population, model.fixed_effect)
    write_prior(
        arguments.out,
        PriorFile(
            **vars(fitted_prior(model, population, before.half_life if before else None)),
            model_name=model.name,
            click_delay=before.click_delay if before else None,
            found=before.found if before else {},
            mean_offset=before.mean_offset if before else None,
            examination=before.examination if before else None,
            item=item,
            evidence=_evidence_of(users, model, before, settings.prior),
        ),
        model,
    )
    if refused:
        print(f"passed over {len(refused):,} records that cannot be used; the first: {refused[0]}")
    return 0


def _evidence_of(users: Crowd, model: Model, before: PriorFile | None, source: str) -> Evidence | None:
    """What an increment goes on from: these users, each known as one, and what was known of the fixed effect.

    None if of a fixed effect that is in force nothing says how well it is known.
    """
    if before is None or before.evidence is None:
        return None if model.fixed_effect.any() else Evidence(users)
    # Beliefs tell the likelihood of their outcomes but for a constant; where EM ends depends on its size.
    users = users._replace(evidence=before.evidence.users.evidence)
    return Evidence(users, known_from(model, before, source).fixed_effect_cov)
