"""Ports that a process listens on, looked at before it opens anything else."""

from __future__ import annotations

import errno
import socket

from service.settings import SettingsError


def require_free(host: str, port: int, setting: str) -> None:
    """Return if a process could listen there; 0 is any port, or none.

    Raises
    ------
    SettingsError
        If it could not; the message names host, port and `setting`, which says where they come from.
    """
    if port == 0:
        return
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the server does: what is left of connections of a process that ended does not hold a port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as exc:
        why = "is in use by another process; expected a free one" if exc.errno == errno.EADDRINUSE else str(exc)
        raise SettingsError(f"port {port} of {host} ({setting}): {why}") from exc
