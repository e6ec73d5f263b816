"""`lc-ray cluster up` and `down`: Ray's own launcher, with its file looked at first."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from lc_ray.errors import ClusterError


def read(file: Path) -> dict[str, Any]:
    """A launcher file as Ray completes it, checked by Ray's own schema.

    Raises:
        ClusterError: it can't be read, or is not what the schema says.
    """
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        tree = yaml.safe_load(file.read_text("utf-8"))
        if not isinstance(tree, dict) or "provider" not in tree:
            raise ValueError("it names no provider")
        config = prepare_config(tree)
        validate_config(config)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ClusterError(f"can't be read: {error}", str(file)) from None
    except jsonschema.ValidationError as error:
        path = ".".join(map(str, error.absolute_path))
        raise ClusterError(f"{path + ': ' if path else ''}{error.message}", str(file), "the files in cluster/ are examples") from None
    except (TypeError, KeyError, AttributeError, ValueError, AssertionError) as error:
        raise ClusterError(f"not a launcher file of Ray: {error}", str(file), "the files in cluster/ are examples") from None
    return dict(config)


def run(what: str, file: Path, yes: bool) -> None:
    """Run `ray up` or `ray down` on a launcher file.

    Raises:
        ClusterError: the file is wrong, or Ray's launcher failed; it has said why.
    """
    read(file)
    ray = shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray"
    done = subprocess.run([ray, what, str(file), *(["--yes"] if yes else [])], check=False)
    if done.returncode:
        raise ClusterError(f"`ray {what}` ended with {done.returncode}", str(file))
