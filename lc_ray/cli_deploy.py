"""`lc-ray deploy`: an artifact on a platform."""

from __future__ import annotations

import os
import shlex
from typing import Annotated

import typer

from lc_ray import family
from lc_ray.errors import DeployError
from lc_ray.terminal import ArtifactPath, values

Platform = Annotated[str, typer.Option(help=f"one of {', '.join(family.kinds('deploy'))}", show_default=False)]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="a setting of the platform; missing ones are listed")]
Dry = Annotated[bool, typer.Option("--dry-run", help="print every call with its arguments, and make none")]
Delete = Annotated[bool, typer.Option("--delete", help="delete everything that was made there")]


def deploy(artifact: ArtifactPath, platform: Platform, settings: Settings = None, dry_run: Dry = False, delete: Delete = False) -> None:
    """Deploy an artifact on a platform, or replace the version that is deployed there, without downtime."""
    from lc_ray import artifact as artifacts
    from lc_ray.deploy import _platform
    from lc_ray.section import override

    if dry_run and delete:
        raise DeployError("--dry-run tells what deploying calls, and would tell nothing of deleting", fix="leave one of the two out")
    chosen = _platform.find(platform)
    parsed, found = _platform.parse(chosen, override({}, values(settings))), artifacts.read(artifact)
    if dry_run:
        print(*chosen.calls(found, parsed), sep="\n")
        return
    if chosen.__name__.endswith(".ray") and not os.environ.get("RAY_ADDRESS"):
        fix = f"`{shlex.join(['lc-ray', 'serve', artifact])}`, or set RAY_ADDRESS to a cluster's"
        raise DeployError("a local Ray would end with this command, and the endpoint with it", platform, fix)
    if delete:
        chosen.delete(found, parsed)
    else:
        print(chosen.deploy(found, parsed).url)
