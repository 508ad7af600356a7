"""The decorator of compiled functions, and where their machine code is kept.

Numba caches machine code beside the source, for a generic processor, so that an image built on one machine runs on
another. `python -m learner.compile` fills the cache when an environment is built.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from glob import glob
from importlib.resources import files
from typing import Any, Protocol, TypeVar, overload

import numba
from numba.core import caching

F = TypeVar("F", bound=Callable[..., Any])

# What compiled functions are made of.
_SOURCES = ("belief/*.py", "events/microbatch.py", "policy/kernel.py", "record/*.py", "step/*.py")


@cache
def _digest() -> bytes:
    """A digest of all compiled sources: a compiled function contains those it calls, from other files too."""
    found = hashlib.blake2b(digest_size=16)
    learner = files("learner")
    for pattern in _SOURCES:
        for source in sorted(glob(pattern, root_dir=str(learner))):
            found.update(learner.joinpath(source).read_bytes())
    return found.digest()


class SourceCacheLocator(caching.InTreeCacheLocator):  # type: ignore[misc]
    """The `__pycache__` beside the source; it may be read-only once it is filled."""

    def ensure_cache_path(self) -> None:
        """Accept a folder that cannot be written if it holds compiled code."""
        try:
            super().ensure_cache_path()
        except OSError:
            if not glob(f"{self.get_cache_path()}/*.nbi"):
                raise

    def get_source_stamp(self) -> bytes:
        """Stamp a function with all compiled sources, not with its own file alone."""
        return _digest()


numba.config.CPU_NAME, numba.config.CPU_FEATURES = "generic", ""
numba.config.CACHE_LOCATOR_CLASSES = f"{__name__}.{SourceCacheLocator.__name__},UserWideCacheLocator"


class _Decorator(Protocol):
    def __call__(self, function: F, /) -> F: ...


@overload
def compiled(function: F, /) -> F: ...
@overload
def compiled(*, allocates: bool) -> _Decorator: ...
def compiled(function: Any = None, /, *, allocates: bool = False) -> Any:
    """Compile a function: cached, without the interpreter lock, and without `fastmath`, which reorders sums.

    Parameters
    ----------
    allocates
        Whether it makes arrays, or calls what returns one. Without that it counts no references to those it is given,
        which are its caller's: counting took 0.3 of the learning step's time.
    """
    return _decorator(function, cache=True, _nrt=allocates)


@overload
def inner(function: F, /) -> F: ...
@overload
def inner(*, allocates: bool) -> _Decorator: ...
def inner(function: Any = None, /, *, allocates: bool = False) -> Any:
    """As `compiled`, of a function that only compiled functions call: a way in from Python takes long to compile."""
    return _decorator(function, no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=allocates)


def _decorator(function: Any, **options: bool) -> Any:
    decorate = numba.njit(nogil=True, error_model="numpy", **options)
    return decorate if function is None else decorate(function)
