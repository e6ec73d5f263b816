"""Pages for people, and the description that they are made from.

    GET /               the playground, without a key
    GET /docs           the reference, without a key
    GET /openapi.json   OpenAPI 3.1, of the models that are served now

A page holds nothing of the models: it asks for a key, and with it for the description. It is one file, fetches nothing from elsewhere, and
runs no script but its own.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib import resources

from lc_ray.serve import openapi
from lc_ray.serve.endpoint import Models
from lc_ray.serve.http import JSONResponse, Request, Response, Route
from lc_ray.serve.openapi import JSON, TEXT, Operation

PUBLIC = ("/", "/docs")
_HTML = "text/html"
_PARTS = re.compile(r'<link rel="stylesheet" href="([\w.]+)">|<script src="([\w.]+)"></script>')


def routes(models: Models) -> list[Route]:
    """The pages and the description."""

    async def playground(request: Request) -> Response:
        return page("playground.html")

    async def reference(request: Request) -> Response:
        return page("reference.html")

    async def description(request: Request) -> Response:
        return JSONResponse(openapi.document(models), headers={"cache-control": "no-store"})

    return [Route("/", playground), Route("/docs", reference), Route("/openapi.json", description)]


def describe(models: Models) -> list[Operation]:
    """The three operations."""
    return [
        Operation("get", "/", "The playground", {_HTML: TEXT}),
        Operation("get", "/docs", "The reference", {_HTML: TEXT}),
        Operation("get", "/openapi.json", "This description", {JSON: {"type": "object"}}),
    ]


@functools.cache
def page(name: str) -> Response:
    """A file of lc_ray/serve/pages, with its styles and scripts in it, which are all that its content policy lets a browser run."""
    folder = resources.files("lc_ray.serve") / "pages"
    allowed: dict[str, list[str]] = {"style": [], "script": []}

    def inlined(found: re.Match[str]) -> str:
        kind = "style" if found[1] else "script"
        text = (folder / (found[1] or found[2])).read_text("utf-8")
        allowed[kind].append(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")
        return f"<{kind}>{text}</{kind}>"

    text = _PARTS.sub(inlined, (folder / name).read_text("utf-8"))
    policy = {
        "default-src": "'none'",
        **{f"{kind}-src": " ".join(hashes) for kind, hashes in allowed.items()},
        "connect-src": "'self'",
        "img-src": "data: blob:",
        "media-src": "data: blob:",
        **dict.fromkeys(("base-uri", "form-action", "frame-ancestors"), "'none'"),
    }
    headers = {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "permissions-policy": "microphone=(self), camera=(), geolocation=()",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(text, headers=headers, media_type=_HTML)
