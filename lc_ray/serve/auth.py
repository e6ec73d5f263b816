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
from collections.abc import Collection, Mapping
from pathlib import Path

from lc_ray.errors import ServeError

VARIABLE = "LC_RAY_API_KEY"
KEYLESS = "LC_RAY_KEYLESS"  # is 1 in a container to which its platform lets nobody through but those whom it knows


def key_file() -> Path:
    """Where the key is kept if `LC_RAY_API_KEY` is not set: `~/.config/lc_ray/api_key`, below XDG_CONFIG_HOME if that is set."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "lc_ray" / "api_key"


def find() -> str | None:
    """The key of `LC_RAY_API_KEY`, else of the key file, else None.

    Raises:
        ServeError: the key file can't be read, or no header can carry the key.
    """
    try:
        key = _told() or key_file().read_text("utf-8-sig").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ServeError(f"the API key can't be read: {error}", str(key_file()), f"correct the file, or set {VARIABLE}") from None
    if key and not sendable(key):
        raise ServeError("the API key has other characters than a header can carry", place(), "use printable ASCII")
    return key


def _told() -> str:
    """The key of the environment, where it may well end in a new line."""
    return os.environ.get(VARIABLE, "").strip()


def sendable(key: str) -> bool:
    """Whether a header can carry a key as it is: printable ASCII."""
    return key.isascii() and key.isprintable()


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
        with tempfile.NamedTemporaryFile("w", dir=file.parent, encoding="utf-8") as out:  # created with mode 0600
            out.write(secrets.token_urlsafe(32) + "\n")
            out.flush()
            # A link appears whole and never replaces the key of another process that was first.
            with contextlib.suppress(FileExistsError):
                os.link(out.name, file)
    except OSError as error:
        raise ServeError(f"no API key can be written: {error.strerror or error}", str(file), f"set {VARIABLE}") from None
    if made := find():
        return made
    raise ServeError("the API key file is empty", str(file), f"delete it, or set {VARIABLE}")


def place() -> str:
    """Where the key in use comes from, for people."""
    return f"${VARIABLE}" if _told() else str(key_file())


def digest(key: str) -> str:
    """What an endpoint keeps of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def read(path: str | Path) -> dict[str, str]:
    """The keys of a file with a line `NAME:KEY` for each, by name. Empty lines, and those that begin with #, are passed over.

    Raises:
        ServeError: it can't be read, or a line is not as it should be; the key is not told.
    """
    found: dict[str, str] = {}
    fix = "a line for each key: NAME:KEY"
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ServeError(f"the API keys can't be read: {error}", str(path), fix) from None
    for number, line in enumerate(lines, 1):
        name, colon, key = (part.strip() for part in line.partition(":"))
        if not line.strip() or name.startswith("#"):
            continue
        if not (name and colon and key):
            raise ServeError("not NAME:KEY", f"{path}, line {number}", fix)
        if not sendable(key):
            raise ServeError(f"the key of '{name}' has other characters than a header can carry", f"{path}, line {number}", "use printable ASCII")
        if name in found or key in found.values():
            raise ServeError(f"the name or key of '{name}' is there twice", f"{path}, line {number}", "give each its own")
        found[name] = key
    if not found:
        raise ServeError("no keys in the file", str(path), fix)
    return found


def digests(keys: Mapping[str, str]) -> dict[str, str]:
    """Names of keys by their digests.

    Args:
        keys: by name.
    """
    return {digest(key): name for name, key in keys.items()}


def match(authorization: str | None, digests: Collection[str]) -> str | None:
    """Digest of the key that an `Authorization` header carries; "" if none is needed, None if it carries no valid one.

    Takes as long whichever key it is, and whether it is one.

    Args:
        authorization: the header's value.
        digests: of the keys; none means that no key is needed.
    """
    if not digests:
        return ""
    scheme, _, key = (authorization or "").partition(" ")
    given = digest(key.strip())
    matches = [hmac.compare_digest(given, known) for known in digests]
    return given if scheme.lower() == "bearer" and any(matches) else None
