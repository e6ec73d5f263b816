"""OpenAI's protocol, for language models; its clients need only the endpoint's URL with /v1, and the key.

    POST /v1/chat/completions   messages → what the assistant says, or the tools it calls
    POST /v1/completions        prompts → how they go on

`GET /v1/models` is in native.py, which answers in both forms.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from lc_ray.errors import DataError
from lc_ray.modalities import _text
from lc_ray.serve import openapi, record
from lc_ray.serve.batching import QueueFull
from lc_ray.serve.endpoint import Endpoint, Models
from lc_ray.serve.fields import parse
from lc_ray.serve.generation import Ask, Generator, Piece
from lc_ray.serve.http import HttpError, JSONResponse, Request, Response, Route, late, overloaded, read_object
from lc_ray.serve.openapi import JSON, TEXT, Operation, Schema
from lc_ray.serve.protocols import _openai_tools as tools
from lc_ray.serve.protocols._openai_answer import Answers, Chat, Completion
from lc_ray.serve.protocols._openai_body import Body, ChatBody, CompletionBody

PUBLIC = ()
_SHARE = 0.97  # of the longest time a request may take: then a stream still ends with a sentence
_MOST_PROMPTS = 64
_MOST_TOLD = 250_000  # log-probabilities of prompts in a request; each is some 40 bytes of its answer
_MISTAKE = "invalid_request_error"
_TYPES = {"unauthorized": "authentication_error", "rate_limited": "requests"} | dict.fromkeys(("overloaded", "timeout", "internal"), "server_error")
T = TypeVar("T")


def error(content: dict[str, Any]) -> dict[str, Any]:
    """An error in OpenAI's form."""
    inner = content["error"]
    return {"error": {"message": inner["message"], "type": _TYPES.get(inner["code"], _MISTAKE), "param": inner.get("where"), "code": inner["code"]}}


ERROR = openapi.fields(error=openapi.fields(message=TEXT, type=TEXT, param={"type": ["string", "null"]}, code=TEXT))
ERRORS = {"/v1/chat/completions": error, "/v1/completions": error}


def routes(models: Models) -> list[Route]:
    """The operations on served language models."""

    async def chat(request: Request) -> Response:
        body = parse(ChatBody, await read_object(request, models.spec.max_body))
        endpoint = models.choose(body.model)
        generator = _language(endpoint)
        ask = await asyncio.to_thread(_chat_ask, body, generator)
        offered = {tool.function.name: tool.function.parameters for tool in tools.offered(body)}
        most = 1 if body.parallel_tool_calls is False else None
        about = (endpoint.name, endpoint.version, generator.tokenizer, bool(body.logprobs))
        answers = Chat(*about, offered, tools.forced(body), most, older=bool(body.functions))
        return await _answer(request, body, endpoint, [ask], answers)

    async def completions(request: Request) -> Response:
        body = parse(CompletionBody, await read_object(request, models.spec.max_body))
        endpoint = models.choose(body.model)
        generator = _language(endpoint)
        asks, echo = await asyncio.to_thread(_completion_asks, body, generator)
        about = (endpoint.name, endpoint.version, generator.tokenizer, body.logprobs is not None)
        return await _answer(request, body, endpoint, asks, Completion(*about, body.n, echo))

    return [Route("/v1/chat/completions", chat, methods=["POST"]), Route("/v1/completions", completions, methods=["POST"])]


def describe(models: Models) -> list[Operation]:
    """The operations, if any of the models is a language model."""
    names = [name for name in models.names() if models.main(name).generator]
    if not names:
        return []
    found = []
    for path, kind, said in (("/v1/chat/completions", ChatBody, "What a model says next"), ("/v1/completions", CompletionBody, "How a text goes on")):
        body: Schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = body.pop("$defs", {})
        body["properties"]["model"] = {"enum": names}
        choice = openapi.fields("message", "text", index={"type": "integer"}, message={"type": "object"}, text=TEXT, finish_reason=TEXT)
        about: dict[str, Schema] = {"id": TEXT, "object": TEXT, "created": {"type": "integer"}, "model": TEXT, "system_fingerprint": TEXT}
        whole = openapi.fields(**about, choices=openapi.array(choice), usage={"type": "object"})
        found.append(Operation("post", path, said, {JSON: whole, "text/event-stream": TEXT}, {JSON: body}, errors=(404,), schemas=schemas))
    return found


def _language(endpoint: Endpoint) -> Generator:
    if endpoint.generator is None:
        kind = endpoint.predictor.artifact.manifest.task["kind"]
        message = f"'{endpoint.name}' is no language model but made for {kind}; ask it at /v1/models/{endpoint.name}:predict"
        raise HttpError(404, "not_a_language_model", message, "model")
    return endpoint.generator


def _chat_ask(body: ChatBody, generator: Generator) -> Ask:
    ids = _tokens(tools.prompt(body, generator.tokenizer), generator, "messages")
    schema = tools.schema(body)
    try:
        matcher = None if schema is None else generator.grammars.matcher(schema, tools.lenient(body))
    except DataError as problem:
        raise HttpError(400, "invalid_schema", problem.what, tools.place(body)) from None
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    whole = schema is not None or bool(tools.offered(body))
    return _ask(body, generator, ids, body.max_completion_tokens or body.max_tokens, "messages", logprobs, whole, matcher=matcher)


def _completion_asks(body: CompletionBody, generator: Generator) -> tuple[list[Ask], list[str]]:
    """What is asked of each prompt, and the prompts' texts if answers are to begin with them."""
    if body.drawn < body.n or (body.stream and body.drawn > body.n):
        raise HttpError(400, "invalid_value", f"best_of is at least n, which is {body.n}, and no more for a stream", "best_of")
    given = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    prompts: list[Any] = [given] if given and isinstance(given[0], int) else list(given)
    if not prompts or len(prompts) > _MOST_PROMPTS:
        raise HttpError(400, "invalid_value", f"a request has 1 to {_MOST_PROMPTS} prompts, not {len(prompts)}", "prompt")
    coded = [_tokens(one, generator, "prompt") if isinstance(one, str) else _known(one, generator) for one in prompts]
    logprobs = 0 if body.logprobs is None and body.drawn > body.n else body.logprobs
    how = {"prompt_logprobs": body.echo and body.logprobs is not None, "continues": True}
    if how["prompt_logprobs"] and sum(map(len, coded)) * body.drawn * (1 + (logprobs or 0)) > _MOST_TOLD:
        raise HttpError(400, "invalid_value", f"more than {_MOST_TOLD} log-probabilities of prompts; send fewer prompts at a time", "prompt")
    asks = [_ask(body, generator, ids, body.max_tokens, "prompt", logprobs, **how) for ids in coded]
    return asks, [one if isinstance(one, str) else str(generator.tokenizer.decode(one)) for one in prompts] if body.echo else []


def _tokens(text: str, generator: Generator, where: str) -> list[int]:
    """A prompt's tokens, with those that a tokenizer adds unless it is a conversation, whose template has them.

    Raises:
        HttpError: 400, it is no Unicode, or so long that reading its tokens would take longer than a request may.
    """
    if _text.HALF.search(text):
        raise HttpError(400, "invalid_value", "not valid Unicode: half of a surrogate pair", where)

    def read(part: str) -> list[int]:
        return list(generator.tokenizer(part, add_special_tokens=where == "prompt", verbose=False)["input_ids"])

    if len(_text.enough(text, most := generator.positions, read)) < len(text):
        raise HttpError(400, "context_length_exceeded", f"the model reads {most} tokens; the prompt has more than twice as many", where)
    return read(text)


def _known(ids: list[int], generator: Generator) -> list[int]:
    if unknown := [token for token in ids if not 0 <= token < generator.vocabulary]:
        raise HttpError(400, "invalid_value", f"the model has no token {unknown[0]}", "prompt")
    return ids


def _ask(
    body: Body, generator: Generator, ids: list[int], tokens: int | None, where: str, logprobs: int | None, whole: bool = False, **how: Any
) -> Ask:
    """What the generator is asked for; `how` is of `Ask`. An answer that is of use only as a `whole`, as calls are, has all the room that there is.

    Raises:
        HttpError: 400, nothing to go on with, a longer sequence than the model reads, or more answers than run at a time.
    """
    most = generator.positions
    if not ids:
        raise HttpError(400, "invalid_value", "the prompt is empty", where)
    wanted = 1 if tokens is None else tokens
    if len(ids) + wanted > most:
        asked = f" and {tokens} tokens were asked for" if tokens else ""
        raise HttpError(400, "context_length_exceeded", f"the model reads {most} tokens; the prompt has {len(ids)}{asked}", where)
    n, field = body.drawn, "n" if body.drawn == body.n else "best_of"
    if n > generator.spec.batch.max:
        raise HttpError(400, "invalid_value", f"a request may have {generator.spec.batch.max} answers", field)
    held = max(most, generator.spec.batch.tokens)
    room = held // n - len(ids)
    if room < wanted:
        raise HttpError(400, "invalid_value", f"{n} answers are more than the {held} tokens that are held at a time (serve.batch.tokens)", field)
    usual = most if whole else generator.task.max_new_tokens
    longest = min(usual, most - len(ids), room) if tokens is None else tokens
    return Ask(ids, longest, body.sampling(generator.vocabulary), n, body.stops(), logprobs, **how)


async def _answer(request: Request, body: Body, endpoint: Endpoint, asks: list[Ask], answers: Answers) -> Response:
    """The answers to a request's prompts, whole or streamed. A stream begins with its first piece, so that an early error has its status."""
    generator = _language(endpoint)
    deadline = time.monotonic() + generator.spec.timeout * _SHARE
    answers.begin(f"{answers.PREFIX}-{uuid.uuid4().hex}", int(time.time()), asks)
    pieces = _pieces(generator, asks, deadline, tools.place(body) if isinstance(body, ChatBody) else "")
    if not body.stream:
        whole = await _connected(request, _whole(pieces, answers))
        if endpoint.spec.log:
            _log(body, answers.logged(whole["choices"]))
        return await asyncio.to_thread(JSONResponse, whole)
    first = await _connected(request, anext(pieces))
    return _Stream(_events(first, pieces, answers, body, endpoint), media_type="text/event-stream", headers={"cache-control": "no-cache"})


async def _pieces(generator: Generator, asks: list[Ask], deadline: float, where: str) -> AsyncGenerator[Piece, None]:
    """Pieces of the answers to all prompts; `where` is the place of a schema that they must fit."""
    try:
        async with aclosing(generator.run(asks, deadline)) as running:
            async for piece in running:
                yield piece
    except QueueFull:
        raise overloaded(generator.spec.queue) from None
    except TimeoutError:
        raise late(generator.spec.timeout) from None
    except DataError as problem:
        raise HttpError(400, "invalid_schema", problem.what, where) from None


async def _whole(pieces: AsyncIterator[Piece], answers: Answers) -> dict[str, Any]:
    async for piece in pieces:
        answers.take(piece)
    return await asyncio.to_thread(answers.whole)  # log-probabilities of a long prompt are many


async def _events(
    first: Piece, pieces: AsyncGenerator[Piece, None], answers: Answers, body: Body, endpoint: Endpoint
) -> AsyncGenerator[str, None]:
    """Server-sent events. An error ends them, as the status is sent already. They hold the endpoint, which may be replaced meanwhile."""
    usage = {"usage": None} if body.usage else {}
    async with aclosing(pieces):
        try:
            for chunk in answers.chunks(first):
                yield _event(chunk | usage)
            async for piece in pieces:
                for chunk in answers.chunks(piece):
                    yield _event(chunk | usage)
        except HttpError as problem:
            yield _event(error(problem.content))
            return
    if endpoint.spec.log:
        _log(body, answers.logged(answers.whole()["choices"]))
    if body.usage:
        yield _event(answers.usage_chunk())
    yield "data: [DONE]\n\n"


def _log(body: Body, choices: list[dict[str, Any]]) -> None:
    """Tell the request's record what was asked and answered, for the prediction log: its fields are redacted as columns are."""
    asked = [body.model_dump(mode="json", by_alias=True, exclude_unset=True)]
    record.current().predicted = record.Predicted(asked, [{"choices": choices}], [], ())


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


async def _connected(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives; it is cancelled if the client hangs up."""
    running, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        raise ClientDisconnect
    finally:
        running.cancel()
        gone.cancel()


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Stream(StreamingResponse):
    """Events that end when the client hangs up, on any server: Starlette leaves that to the server where it says that it raises."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        events: Any = self.body_iterator
        try:
            await super().__call__({**scope, "asgi": {**scope.get("asgi", {}), "spec_version": "2.3"}}, receive, send)
        finally:
            await events.aclose()
