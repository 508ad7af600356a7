"""Settings from the environment: what of it is ours, what is wrong with it, and what of it is shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from learner.log import check_log_url
from learner.store.url import check_store_url
from service.settings import SECRETS, Settings, SettingsError

PREFIX = "FRESHET_"
_ORIGIN = re.compile(r"https?://[^/@?#\s]+")
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


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Read the settings.

    Parameters
    ----------
    environ
        Variables by name, as in `os.environ`.

    Raises
    ------
    SettingsError
        If a value has the wrong type or range, a ``_FILE`` cannot be read, a secret is empty, settings contradict each
        other, or a variable with the prefix is unknown.
    """
    values: dict[str, str] = {}
    for variable, value in environ.items():
        if not variable.startswith(PREFIX) or is_service_link(variable, value):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name.endswith("_file") and name not in Settings.__struct_fields__:
            name = name.removesuffix("_file")
            value = _read(variable, value, name in SECRETS)
        if name not in Settings.__struct_fields__:
            known = ", ".join(PREFIX + field.upper() for field in Settings.__struct_fields__)
            raise SettingsError(f"{variable}: no such setting; there are: {known}")
        if name in values:
            raise SettingsError(f"{PREFIX}{name.upper()} and {PREFIX}{name.upper()}_FILE: expected one of the two")
        if name in SECRETS:
            # Those who mount secrets often end them with a newline. None at all is one that was not filled in.
            value = value.strip("\r\n")
            if not value.strip():
                raise SettingsError(f"{variable}: empty: expected a secret, or not to be set")
        values[name] = value
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as exc:
        what, _, path = str(exc).partition(" - at `$.")
        name = path.rstrip("`")
        shown = "(secret)" if name in SECRETS else repr(values.get(name))
        raise SettingsError(f"{PREFIX}{name.upper()} = {shown}: {what[:1].lower()}{what[1:]}") from exc
    _check(settings)
    return settings


def _read(variable: str, path: str, is_secret: bool) -> str:
    """What the file of a setting holds."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as exc:
        # The secret itself, where a path should be, is a common slip.
        shown = "(not shown)" if is_secret else repr(path)
        why = exc.strerror if isinstance(exc, OSError) else "not UTF-8"
        raise SettingsError(f"{variable} = {shown}: cannot be read: {why}; expected the path of a file") from exc


def _check(settings: Settings) -> None:
    """Refuse what no type can say."""
    if settings.admin_key and not settings.api_key:
        raise SettingsError(
            "FRESHET_ADMIN_KEY: expected FRESHET_API_KEY too, without which scoring is open to everyone"
        )
    if settings.admin_key and settings.admin_key == settings.api_key:
        raise SettingsError("FRESHET_ADMIN_KEY: expected another key than FRESHET_API_KEY")
    for origin in settings.allowed_origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise SettingsError(f"FRESHET_CORS_ORIGINS: {origin!r}: expected * or origins such as https://shop.example")
    for name, check in (("LOG", check_log_url), ("STORE", check_store_url)):
        try:
            check(getattr(settings, name.lower()))
        except ValueError as exc:
            raise SettingsError(f"{PREFIX}{name}: {exc}") from exc


def describe(settings: Settings) -> dict[str, str]:
    """Each setting as text, with secrets hidden."""
    shown = {}
    for name in Settings.__struct_fields__:
        value = str(getattr(settings, name))
        if name in SECRETS:
            value = "(set)" if value else "(not set)"
        shown[PREFIX + name.upper()] = hide_password(value) if "://" in value else value
    return shown
