"""Servers that texts and keys may be sent to: those that this user has named.

A run folder may come from a stranger, and its config names a server and a variable of the
environment. So what a saved config says of a server holds only where the command line, or the
user's own config, says it too; `PGTG_ENDPOINTS` (addresses, parted by spaces) says it for commands
that take no parameters.
"""

import os
from urllib.parse import urlsplit

from pgtg.errors import ConfigError

NAMED = "PGTG_ENDPOINTS"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def allow(url: str) -> None:
    """The user names a server: here and in all processes that are started from here."""
    known = os.environ.get(NAMED, "").split()
    os.environ[NAMED] = " ".join(dict.fromkeys([*known, _plain(url)]))


def require(url: str) -> None:
    """Raises a ConfigError if nobody has named the server."""
    if _plain(url) not in map(_plain, os.environ.get(NAMED, "").split()):
        raise ConfigError(
            f"judge.base_url: the run folder names {url}, and texts and the key would be sent "
            f"there: give judge.base_url={url} (or {NAMED}={url}) to say that they may"
        )


def problem(url: str) -> str | None:
    """What is wrong with an address; None if nothing is."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 (it is checked when it is asked for)
    except ValueError as error:
        return f"found no address ({error})"
    if parts.username or parts.password or "@" in parts.netloc:
        return "it holds a name or password, which would be stored; keys come from judge.key_env"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return f"found '{url}', expected an address, e.g. https://api.openai.com/v1"
    if parts.query or parts.fragment:
        return "an address ends with its path, e.g. /v1; keys come from judge.key_env"
    return None


def is_open(url: str) -> bool:
    """Whether what is sent there can be read on its way."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in LOOPBACK


def _plain(url: str) -> str:
    return url.rstrip("/")
