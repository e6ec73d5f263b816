"""Conversations and tools in OpenAI's form: what a model reads, and the calls in what it says."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from lc_ray.modalities import _template
from lc_ray.modalities._template import CLOSE, OPEN
from lc_ray.serve.http import HttpError, loads, shallow
from lc_ray.serve.protocols._openai_body import Allowed, ChatBody, Message, Name, Named, Tool

_MISTRAL = "[TOOL_CALLS]"
# As Qwen3-Coder's templates, and those after it, write calls: each argument by itself, whose type is the tool's to say.
_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_ROLES = {"developer": "system", "function": "tool"}  # as templates call them
# Keywords of schemas: those whose value holds schemas by names of the author's choice, and those whose value is no schema.
_BY_NAME = {"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"}
_DATA = {"const", "enum", "default", "examples"}


def prompt(body: ChatBody, tokenizer: Any) -> str:
    """The conversation as the model reads it, up to where it is to answer.

    Raises:
        HttpError: 400, the model has no chat template, or its template refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise HttpError(400, "no_chat_template", "this model's tokenizer has no chat template; use /v1/completions", "messages")
    tools = [_template.tool(**tool.function.model_dump(exclude={"strict"})) for tool in offered(body)]
    try:
        text = _template.write(tokenizer, [_message(message) for message in body.messages], tools, asked=True)
    except _template.REFUSED as error:
        raise HttpError(400, "invalid_messages", f"the model's chat template refuses the conversation: {error}", "messages") from None
    return f"{text}{OPEN}\n" if forced(body) and _template.opens(tokenizer, tools) else text


def _message(message: Message) -> dict[str, Any]:
    """A message for the template."""
    made: dict[str, Any] = {"role": _ROLES.get(message.role, message.role), "content": message.text}
    if message.calls:
        made["tool_calls"] = [_template.call(c.function.name, _object(c.function.arguments or "{}"), c.id) for c in message.calls]
    extra = {"name": message.name, "tool_call_id": message.tool_call_id}
    return made | {name: value for name, value in extra.items() if value is not None}


def _object(text: str) -> Any:
    """Arguments as templates want them; as they are if they are no JSON."""
    try:
        return loads(text)
    except ValueError:
        return text


def offered(body: ChatBody) -> list[Tool]:
    """Tools that the model is told of.

    Raises:
        HttpError: 400, one that is asked for is not among them, or one is and there are none; or one thing is said by its older name, too.
    """
    if body.tools and body.functions:
        raise HttpError(400, "invalid_value", "functions is the older name of tools; a request has one of them", "functions")
    tools = body.tools or [Tool(type="function", function=function) for function in body.functions or []]
    if body.function_call is not None and body.tool_choice is not None:
        raise HttpError(400, "invalid_value", "function_call is the older name of tool_choice; a request has one of them", "function_call")
    choice, where = _choice(body), "tool_choice" if body.function_call is None else "function_call"
    wanted = choice.allowed_tools.tools if isinstance(choice, Allowed) else [choice] if isinstance(choice, Named) else None
    if wanted is not None:
        names = {one.function.name for one in wanted}
        if unknown := names - {tool.function.name for tool in tools}:
            raise HttpError(400, "unknown_tool", f"there is no function '{min(unknown)}'", where)
        tools = [tool for tool in tools if tool.function.name in names]
    if forced(body) and not tools:
        raise HttpError(400, "unknown_tool", "a call is required, and there are no tools", where)
    return [] if choice == "none" else tools


def _choice(body: ChatBody) -> str | Named | Allowed | None:
    """Which tools may or must be called, in whichever form it is said."""
    older = body.function_call
    return Named(type="function", function=older) if isinstance(older, Name) else older or body.tool_choice


def forced(body: ChatBody) -> bool:
    """Whether the answer must be a call."""
    choice = _choice(body)
    return choice == "required" or isinstance(choice, Named) or (isinstance(choice, Allowed) and choice.allowed_tools.mode == "required")


def schema(body: ChatBody) -> dict[str, Any] | None:
    """The JSON schema that the answer must fit, if there is one: that of a call where one is forced, and either's where there are tools.

    Raises:
        HttpError: 400, a schema is announced and missing, or a tool that is asked for is.
    """
    if forced(body):
        return _call_schema(offered(body))
    form = body.response_format
    if form is None or form.type == "text":
        return None
    if form.type == "json_schema" and form.json_schema is None:
        raise HttpError(400, "invalid_value", "response_format.json_schema is missing", "response_format.json_schema")
    answer = form.json_schema.schema_ if form.json_schema else {"type": "object"}
    return _call_schema(tools, answer) if (tools := offered(body)) else answer


def place(body: ChatBody) -> str:
    """Of the schema in the request."""
    return "response_format" if not forced(body) else "functions" if body.functions else "tools"


def lenient(body: ChatBody) -> bool:
    """Whether the schema may have parts that can't be kept to: those of tools may, unless they are strict."""
    return forced(body) and not any(tool.function.strict for tool in offered(body))


def _call_schema(tools: Sequence[Tool], answer: dict[str, Any] | None = None) -> dict[str, Any]:
    """Of one call, or an answer that fits a schema of its own, beside which arguments are kept to those of strict tools alone.

    Each schema is a definition, in which its references look. A tool has no arguments but those that it names.
    """
    definitions, kinds = {}, []
    for number, tool in enumerate(tools):
        kept = answer is None or tool.function.strict
        parameters = {"type": "object"} | (_moved(tool.function.parameters, f"#/$defs/{number}") if kept else {})
        if "properties" in parameters:
            parameters = {"additionalProperties": False} | parameters
        definitions[str(number)] = parameters
        fields = {"name": {"const": tool.function.name}, "arguments": {"$ref": f"#/$defs/{number}"}}
        kinds.append({"type": "object", "properties": fields, "required": ["name", "arguments"], "additionalProperties": False})
    if answer is not None:
        definitions["answer"] = _moved(answer, "#/$defs/answer")
        kinds.append({"$ref": "#/$defs/answer"})
    return {"$defs": definitions, "anyOf": kinds} if len(kinds) > 1 else {"$defs": definitions, **kinds[0]}


def _moved(part: Any, to: str) -> Any:
    """A part of a schema that becomes a definition, in which references are looked for from the top."""
    if isinstance(part, list):
        return [_moved(one, to) for one in part]
    if not isinstance(part, dict):
        return part
    moved: dict[str, Any] = {}
    for keyword, value in part.items():
        if keyword in _BY_NAME and isinstance(value, dict):
            moved[keyword] = {name: _moved(one, to) for name, one in value.items()}
        elif keyword != "$id":
            moved[keyword] = value if keyword in _DATA else _moved(value, to)
    if isinstance(here := part.get("$ref"), str) and (here == "#" or here.startswith("#/")):
        moved["$ref"] = to + here[1:]
    return moved


def certain(text: str) -> int:
    """Characters of an unfinished answer that can't be part of a call."""
    if text.lstrip()[:1] in ("{", "["):
        return 0
    if (place := text.find(OPEN)) >= 0:
        return place
    held = next((n for n in range(len(OPEN) - 1, 0, -1) if text.endswith(OPEN[:n])), 0)
    return len(text) - held if text.strip() else 0


def calls(text: str, tools: Mapping[str, dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """What an answer says beside its calls, and those, in OpenAI's form; what can't be read as a call of a known tool stays text.

    Args:
        text: the answer.
        tools: parameters of each, by its name.
    """
    rest, written = _read(text, tools)
    found = [_call(call, tools) for one in written for call in (one if isinstance(one, list) else [one])]
    made = [call for call in found if call is not None]
    return (rest, made) if made and len(made) == len(found) else (text, [])


def _read(text: str, tools: Mapping[str, dict[str, Any]]) -> tuple[str, list[Any]]:
    """What is beside the calls, which end where their JSON does, and that."""
    rest, at, found = "", 0, list[Any]()
    if OPEN not in text:
        return "", [_object(text.strip().removeprefix(_MISTRAL))]
    while (place := text.find(OPEN, at)) >= 0:
        rest += text[at:place]
        begin = _behind(text, place + len(OPEN))
        try:
            if spelled := _FUNCTION.match(text, begin):
                name, end = spelled[1].strip(), spelled.end()
                kinds = tools.get(name, {}).get("properties")
                typed = {key: _typed(value, kinds.get(key) if isinstance(kinds, dict) else None) for key, value in _PARAMETER.findall(spelled[2])}
                call: Any = {"name": name, "arguments": typed}
            else:
                call, end = json.JSONDecoder().raw_decode(text, begin)
        except (ValueError, RecursionError):
            return "", [None]
        found.append(call if shallow(call) else None)
        at = _behind(text, end)
        closed = text.startswith(CLOSE, at) or CLOSE.startswith(text[at:])  # the end may be cut off
        if not closed and not text.startswith(OPEN, at):
            return "", [None]
        at += len(CLOSE) * closed
    return (rest + text[at:]).rstrip(), found  # a stream has sent its beginning


def _typed(value: str, kind: Any) -> Any:
    """An argument that is written without quotes: as text where its schema says so, else what it is in JSON."""
    kinds = kind.get("type", []) if isinstance(kind, dict) else []
    if "string" in ([kinds] if isinstance(kinds, str) else kinds):
        return None if value == "null" and "null" in kinds else value
    return _object(value)


def _behind(text: str, at: int) -> int:
    """Where white space ends."""
    return len(text) - len(text[at:].lstrip())


def _call(call: Any, tools: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or call["name"] not in tools:
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    try:
        content = loads(arguments) if isinstance(arguments, str) else arguments
        written = json.dumps(content, allow_nan=False)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": {"name": call["name"], "arguments": written}}
