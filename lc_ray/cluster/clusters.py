"""Clusters that jobs can be sent to, by the names that `~/.config/lc_ray/clusters.yaml` gives them.

    office:
      address: https://ray.office.example:8265
      token_file: ~/.config/lc_ray/office.token
      storage: /mnt/shared/runs
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from lc_ray.errors import ClusterError
from lc_ray.section import Section, load, problems
from lc_ray.serve.auth import key_file, sendable


class Cluster(Section):
    """Where a cluster is, and what is agreed with it."""

    address: str = Field(pattern=r"^https?://[^/\s]+/?$", description="of its dashboard, for example https://ray.example.com:8265")
    token_file: str | None = Field(None, description="file with its token; where Ray itself looks for one if not given")
    ca: str | None = Field(None, description="PEM file of the authority that signed its certificate")
    storage: str | None = Field(
        None,
        pattern=r"^(/|~|\w+://)",
        description="folder that all its nodes mount, or a bucket (s3://, gs://, hdfs://), for runs and what they need",
    )
    results: str | None = Field(None, pattern=r"^\w+://", description="URI (s3://, gs://) finished runs are copied to, and fetched from")

    def token(self) -> str | None:
        """The cluster's token, if there is one.

        Raises:
            ClusterError: the named file can't be read, or no header can carry the token.
        """
        if self.token_file is None and (given := os.environ.get("RAY_AUTH_TOKEN")):
            return _sendable(given.strip(), "RAY_AUTH_TOKEN")
        file = Path(os.path.expanduser(self.token_file or os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"))
        try:
            return _sendable(file.read_text("utf-8").strip(), str(file))
        except (OSError, UnicodeDecodeError) as error:
            if self.token_file is None:
                return None
            raise ClusterError(f"the token can't be read: {error}", str(file), "correct `token_file` of the cluster") from None


def _sendable(token: str, where: str) -> str | None:
    if not sendable(token):
        raise ClusterError("the token has other characters than a header can carry", where, "a token is one line of printable ASCII")
    return token or None


def config() -> Path:
    """The file with the named clusters."""
    return key_file().with_name("clusters.yaml")


def find(name: str | None, address: str | None) -> Cluster:
    """The cluster of a name or an address; with neither, the only one that has a name.

    Raises:
        ClusterError: none or several are meant, or the file is wrong.
    """
    if address is not None:
        if name is not None:
            raise ClusterError("give either --cluster or --address")
        return _cluster({"address": address}, "--address")
    known = _read()
    if name is None and len(known) != 1:
        named = f"; named: {', '.join(known)}" if known else ""
        raise ClusterError("which cluster?" + named, fix=f"give --cluster NAME or --address URL; names are kept in {config()}")
    name = next(iter(known)) if name is None else name
    if name not in known:
        raise ClusterError(f"no cluster is named '{name}'; named: {', '.join(known) or 'none'}", str(config()))
    return _cluster(known[name], f"{config()}: {name}")


def _read() -> dict[str, object]:
    try:
        tree = load(config().read_text("utf-8")) or {}
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ClusterError(f"can't be read: {error}", str(config())) from None
    if not isinstance(tree, dict):
        raise ClusterError("expected a mapping of names to clusters", str(config()))
    return {str(name): value for name, value in tree.items()}


def _cluster(tree: object, where: str) -> Cluster:
    try:
        return Cluster.model_validate(tree)
    except ValidationError as error:
        raise ClusterError(problems(error, Cluster), where) from None
