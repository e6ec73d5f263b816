"""API keys: where one is kept, and whether a request carries one. Imports no Ray, so that the client can use it too.

Endpoints know only sha256 digests of keys: Ray shows a deployment's arguments to everybody who can reach its controller.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lc_ray.errors import ServeError

VARIABLE = "LC_RAY_API_KEY"


def key_file() -> Path:
    """Where the key is kept if `LC_RAY_API_KEY` is not set: `~/.config/lc_ray/api_key`, below XDG_CONFIG_HOME if that is set."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "lc_ray" / "api_key"


def find() -> str | None:
    """The key of `LC_RAY_API_KEY`, else of the key file, else None.

    Raises:
        ServeError: the key file can't be read.
    """
    try:
        return os.environ.get(VARIABLE) or key_file().read_text("utf-8").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ServeError(f"the API key can't be read: {error}", str(key_file()), f"correct the file, or set {VARIABLE}") from None


def ensure() -> str:
    """The key that `find` gives, made and written to the key file (mode 0600) on first use.

    Raises:
        ServeError: the key file can't be read or written.
    """
    if known := find():
        return known
    file = key_file()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent)  # created with mode 0600
        with open(handle, "w", encoding="utf-8") as out:
            out.write(secrets.token_urlsafe(32) + "\n")
        # A link appears whole and never replaces the key of another process that was first.
        with contextlib.suppress(FileExistsError):
            os.link(name, file)
        os.unlink(name)
    except OSError as error:
        raise ServeError(f"no API key can be written: {error.strerror or error}", str(file), f"set {VARIABLE}") from None
    if made := find():
        return made
    raise ServeError("the API key file is empty", str(file), f"delete it, or set {VARIABLE}")


def place() -> str:
    """Where the key in use comes from, for people."""
    return f"${VARIABLE}" if os.environ.get(VARIABLE) else str(key_file())


def digest(key: str) -> str:
    """What an endpoint keeps of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def allowed(authorization: str | None, digests: Sequence[str]) -> bool:
    """Whether an `Authorization` header carries one of the keys. Takes as long whichever key it is, and whether it is one.

    Args:
        authorization: the header's value.
        digests: of the keys; none means that no key is needed.
    """
    if not digests:
        return True
    scheme, _, key = (authorization or "").partition(" ")
    given = digest(key.strip())
    matches = [hmac.compare_digest(given, known) for known in digests]
    return scheme.lower() == "bearer" and any(matches)
