"""Work that is given to others in turn, and its results in the same order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")

AHEAD = 4
"""Results that may wait to be asked for."""


def in_turn(submit: Callable[[S], Future[T]], work: Iterable[S]) -> Iterator[tuple[S, T, list[S]]]:
    """Each piece of work, its result, and what has been given away behind it.

    What is raised where the work comes from is raised behind the results of what came before it.
    """
    given: deque[tuple[S, Future[T]]] = deque()

    def first() -> tuple[S, T, list[S]]:
        one, future = given.popleft()
        return one, future.result(), [other for other, _ in given]

    try:
        for one in work:
            given.append((one, submit(one)))
            while given and (len(given) > AHEAD or given[0][1].done()):
                yield first()
    except Exception:
        while given:
            yield first()
        raise
    while given:
        yield first()


def in_threads(n: int, function: Callable[[S], T], work: Iterable[S]) -> Iterator[tuple[S, T]]:
    """Each piece of work, and what a function makes of it in one of n threads, in turn."""
    with ThreadPoolExecutor(n) as threads:
        for one, result, _ in in_turn(lambda one: threads.submit(function, one), work):
            yield one, result
