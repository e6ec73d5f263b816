"""Requests as browsers and curl send files: multipart forms, a field per column."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from lc_ray.serve.http import HttpError, Request, read_body, read_object

_CHARSETS = ("utf-8", "us-ascii", "iso-8859-1")  # Python knows others that take hours for a large body


async def read_request(request: Request, max_body: int) -> dict[str, Any]:
    """A request's body: a JSON object, or a form as `{"instances": [...]}`.

    Raises:
        HttpError: 413, it is larger than `max_body` bytes; 400, it is neither.
    """
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return {"instances": await read_form(request, max_body)}
    return await read_object(request, max_body)


async def read_form(request: Request, max_body: int) -> list[dict[str, Any]]:
    """The instances of a multipart form: bytes of files and texts by column. A column's second field belongs to the second instance.

    Raises:
        HttpError: 413, it is larger than `max_body` bytes; 400, it is not a form, or columns have not equally many fields.
    """
    _, options = parse_options_header(request.headers["content-type"])
    if options.get(b"charset", b"utf-8").decode("latin-1").lower() not in _CHARSETS:
        raise HttpError(400, "malformed_form", f"the charset of a form is one of {', '.join(_CHARSETS)}")
    body = await read_body(request, max_body)

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(request.headers, whole(), max_part_size=max_body).parse()
    except MultiPartException as error:
        raise HttpError(400, "malformed_form", error.message) from None
    columns: dict[str, list[Any]] = {}
    try:
        for name, value in form.multi_items():
            columns.setdefault(name, []).append(await value.read() if isinstance(value, UploadFile) else value)
    finally:
        await form.close()
    if not columns:
        raise HttpError(400, "malformed_form", "the form has no fields")
    counts = {name: len(values) for name, values in columns.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise HttpError(400, "malformed_form", f"every column needs a field for each instance; there are: {told}")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
