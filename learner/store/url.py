"""What names a store."""

from __future__ import annotations

import re


def check_store_url(url: str) -> None:
    """Raise `ValueError` for a URL that `open_store` would not take; its message never repeats the URL."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "unix":
        return
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        return
    if not separator or scheme not in {"redis", "rediss", "redis+cluster", "rediss+cluster"}:
        raise ValueError(
            f"store URL with scheme {scheme if separator else None!r}: "
            "expected redis://, rediss://, redis+cluster://, rediss+cluster:// or sqlite:///path"
        )
    if not _REDIS.fullmatch(rest):
        # A password with a slash or a hash mark in it is the usual reason, and must not be shown.
        raise ValueError(
            f"store URL: expected {scheme}://[user:password@]host[:port][/database], characters such as / # ? @ of a "
            "password as %2F %23 %3F %40, or the password in FRESHET_REDIS_PASSWORD"
        )


_REDIS = re.compile(
    r"([^@/?#]*@)?"  # user and password
    r"(\[[0-9A-Fa-f:.]+\]|[^\s@:/?#,]*)(:\d{1,5})?(,[^\s@:/?#,]+:\d{1,5})*"  # host, port, other nodes of a cluster
    r"(/\d*)?(\?[^#]*)?"  # database, options
)
