"""What of the environment is not ours, and what of it is not shown."""

from __future__ import annotations

import re
from collections.abc import Mapping

PREFIX = "FRESHET_"
# What Kubernetes tells every pod of each service: of one called freshet or freshet-scorer, by names that begin as ours.
_LINK = re.compile(r"FRESHET(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_LINK_PORT = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)


def service_links(environ: Mapping[str, str]) -> list[str]:
    """The variables that `read_settings` passes over, since Kubernetes made them and not who runs this."""
    return sorted(variable for variable, value in environ.items() if is_service_link(variable, value))


def is_service_link(variable: str, value: str) -> bool:
    """Whether a variable is one that Kubernetes makes of a service whose name begins as ours."""
    if variable.startswith(PREFIX) and variable.endswith("_PORT") and _LINK_PORT.match(value):
        return True
    return _LINK.fullmatch(variable) is not None


def hide_password(url: str) -> str:
    """A URL with its passwords, if any, replaced by stars, whatever characters they have."""
    # redis-py takes them there too: ?password=, ?ssl_password=
    url = re.sub(r"(password=)[^&]*", r"\1***", url)
    scheme, separator, rest = url.partition("://")
    # Not by `urlsplit`: to it a slash in a password that should have been %2F begins the path.
    account, at, place = rest.rpartition("@")
    user, colon, _ = account.partition(":")
    return f"{scheme}{separator}{user}{':***' if colon else ''}{at}{place}"
