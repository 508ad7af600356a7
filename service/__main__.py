"""`freshet`, also as `python -m service`."""

from __future__ import annotations

import os
import sys

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""How many threads the libraries behind NumPy and SciPy use, one for each processor if these are not set."""


def main() -> int:
    """Run the command; returns the exit status."""
    # Matrices here are as small as a model. Threads that wait for each other over them took most of the time, and
    # their libraries read these only once, when NumPy is imported.
    for name in _THREADS:
        os.environ.setdefault(name, "1")
    from service.commands.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
