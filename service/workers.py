"""Several processes that answer on one port: forks of one that listens accept from its socket, and it watches them."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from service.web.server import end_in_time

_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}

log = structlog.get_logger("freshet")


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket on a port, for all workers: whoever is idle accepts, and one that dies takes no connection with it."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        yield listener


def run_workers(n: int, work: Callable[[], int], least_age_s: float) -> int:
    """Run `work` in n forks until a signal; returns the exit status.

    SIGTERM and SIGINT end all of them in order. A worker that dies is started again. One that is younger than
    `least_age_s` would die again: then the others are ended too, the status is 1, and whoever watches over the service
    says what is next. Workers end when this process does, however it ends.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    # Nothing is ever written: its end is that of this process.
    alive, ours = os.pipe()
    born: dict[int, float] = {}
    status, ending = 0, False

    def start() -> None:
        if not (pid := os.fork()):
            os.close(ours)
            _be_worker(alive, work)
        born[pid] = time.monotonic()

    def end() -> None:
        nonlocal ending
        ending = True
        end_in_time()
        for pid in born:
            os.kill(pid, signal.SIGTERM)

    for _ in range(n):
        start()
    while born:
        if signal.sigwait(_SIGNALS) != signal.SIGCHLD and not ending:
            end()
        for pid, how in _dead():
            age = time.monotonic() - born.pop(pid)
            if ending:
                # One that was still starting has no handler yet.
                status |= how not in (0, -signal.SIGTERM)
                continue
            log.error("a worker died", pid=pid, status=how, age_s=round(age, 1))
            if age >= least_age_s:
                start()
            else:
                status = 1
                end()
    os.close(alive)
    os.close(ours)
    return status


def _dead() -> Iterator[tuple[int, int]]:
    """Workers that have ended, and how: an exit status, or minus a signal's number. One SIGCHLD may be of many."""
    while True:
        try:
            pid, how = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, os.waitstatus_to_exitcode(how)


def _be_worker(alive: int, work: Callable[[], int]) -> None:
    """What a fork does; it never returns."""
    status = 1
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
        status = work()
    except BaseException:  # noqa: BLE001 -- the stack below is the parent's, which must not go on here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _end_with(alive: int) -> None:
    """End in order once the parent is gone."""
    os.read(alive, 1)
    os.kill(os.getpid(), signal.SIGTERM)
