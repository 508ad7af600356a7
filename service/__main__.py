"""`freshet`, also as `python -m service`."""

from __future__ import annotations

import os
import select
import sys

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""How many threads the libraries behind NumPy and SciPy use, one for each processor if these are not set."""
# As a shell has it: 128 and the number of SIGPIPE.
EXIT_UNREAD = 141


def main() -> int:
    """Run the command; returns the exit status."""
    # Matrices here are as small as a model. Threads that wait for each other over them took most of the time, and
    # their libraries read these only once, when NumPy is imported.
    for name in _THREADS:
        os.environ.setdefault(name, "1")
    from service.commands.main import main as run

    try:
        try:
            return run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _unread():
            raise
        # `freshet demo | head`: whoever read it has seen enough. What Python still holds back has nowhere to go.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.dup2(nowhere, sys.stderr.fileno())
        return EXIT_UNREAD


def _unread() -> bool:
    """Whether standard output or error is a pipe that nobody reads; else what broke was another connection."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream, 0)
    return any(happened & select.POLLERR for _, happened in poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
