"""Requests as browsers and curl send files: multipart forms, a field per column."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from lc_ray.serve.endpoint import Endpoint
from lc_ray.serve.http import HttpError, Request, read_body, read_object

_CHARSETS = ("utf-8", "us-ascii", "iso-8859-1")  # Python knows others that take hours for a large body
_FIELDS = 1000  # that any form may have


async def read_request(request: Request, max_body: int, endpoint: Endpoint) -> dict[str, Any]:
    """A request's body: a JSON object, or a form as `{"instances": [...]}`.

    Raises:
        HttpError: 413, it is larger than `max_body` bytes; 415, its charset is not known; 400, it is neither.
    """
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return {"instances": await read_form(request, max_body, endpoint)}
    return await read_object(request, max_body)


def charset(content_type: str) -> str:
    """The charset that a content type names, or UTF-8.

    Raises:
        HttpError: 415, it is not known.
    """
    _, options = parse_options_header(content_type)
    found = options.get(b"charset", b"utf-8").decode("latin-1").lower()
    if found not in _CHARSETS:
        raise HttpError(415, "unsupported_charset", f"the charset of a body is one of {', '.join(_CHARSETS)}", "content-type")
    return found


async def read_form(request: Request, max_body: int, endpoint: Endpoint) -> list[dict[str, Any]]:
    """The instances of a multipart form: bytes of files and texts by column. A column's second field belongs to the second instance.

    Raises:
        HttpError: 413, it is larger than `max_body` bytes; 415, its charset is not known; 400, it is not a form, its texts are not of its charset, it
            has more fields than all instances and columns need, or not equally many for each column.
    """
    told = request.headers["content-type"]
    encoding = charset(told)
    body = await read_body(request, max_body)
    boundary = parse_options_header(told)[1].get(b"boundary")
    if boundary and b"--" + boundary + b"--" not in body:
        raise HttpError(400, "malformed_form", "the form is cut off: its closing boundary is missing")
    most = max(_FIELDS, endpoint.spec.max_instances * len(endpoint.predictor.columns))

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    # Starlette takes what is not of the form's charset for Latin-1: so it is told that all is.
    latin = Headers({"content-type": f"{told}; charset=iso-8859-1"})
    try:
        form = await MultiPartParser(latin, whole(), max_files=most, max_fields=most, max_part_size=max_body).parse()
    except MultiPartException as error:
        raise HttpError(400, "malformed_form", error.message) from None
    columns: dict[str, list[Any]] = {}
    try:
        for name, value in form.multi_items():
            read = await value.read() if isinstance(value, UploadFile) else value.encode("iso-8859-1").decode(encoding)
            columns.setdefault(name.encode("iso-8859-1").decode(encoding), []).append(read)
    except UnicodeDecodeError as error:
        raise HttpError(400, "malformed_form", f"the form's texts are not {encoding}: {error}") from None
    finally:
        await form.close()
    if not columns:
        raise HttpError(400, "malformed_form", "the form has no fields")
    counts = {name: len(values) for name, values in columns.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise HttpError(400, "malformed_form", f"every column needs a field for each instance; there are: {told}")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
