"""Conversations, from the forms in which files and requests have them.

    OpenAI, TRL      {"role": "assistant", "content": ..., "tool_calls": [...]}, {"role": "tool", ...}; `weight: 0` where nothing is to be learned
    ShareGPT         {"from": "human", "value": ...}, with "function_call" and "observation" as LLaMA-Factory has them
    columns beside   `tools`, a list of functions, and `system`; several columns of messages, or of what the user says, follow one another

A clean message has a role of `ROLES` and its `content`; and, where they are said, `tool_calls` and, the first one, `tools`, as JSON, `name`,
`tool_call_id`, the assistant's `THOUGHTS`, and a `weight` of 0.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from lc_ray.errors import DataError
from lc_ray.modalities import _template, _text

SAID, KNOWN = 2, 3  # in the mask of tokens, where the assistant speaks; and where it does and that is not to be learned
ROLES = ("system", "user", "assistant", "tool")
THOUGHTS = ("reasoning_content", "thinking")  # as templates of models that think call them
_KEPT = ("name", "tool_call_id", *THOUGHTS)  # as they are
TYPE = pa.list_(pa.struct([(name, pa.string()) for name in ("role", "content", "tools", "tool_calls", *_KEPT)] + [("weight", pa.int8())]))
_ALIKE = {  # roles of ShareGPT and of Gemini, and OpenAI's newer and older ones
    **{"human": "user", "developer": "system"},
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("function", "observation", "tool_response", "function_response", "ipython"), "tool"),
}
_CALLS = ("function_call", "tool_call")  # roles of messages that are calls alone
_TOOLS, _SYSTEM = ("tools", "functions"), ("system", "system_prompt")  # columns beside a conversation


def beside(column: str) -> tuple[str, ...] | None:
    """What a column has by its name that is no part of what is said: `_TOOLS` or `_SYSTEM`."""
    return next((kind for kind in (_TOOLS, _SYSTEM) if column.rpartition(".")[2].lower() in kind), None)


def clean(cells: dict[str, Any], read: Callable[[Any], str]) -> list[dict[str, Any]]:
    """Clean messages of the columns that are one conversation.

    Args:
        cells: by their names. Each is a list of messages, the text that JSON or Python writes of it, or any other text, which is what the user says.
        read: a cell → its text.

    Raises:
        DataError: something else, an unknown role, a user who says nothing, or calls or tools that can't be read.
    """
    there = {name: cell for name, cell in cells.items() if len(cells) == 1 or not _text.absent(cell)}
    others = {beside(name): cell for name, cell in there.items()}
    raw: list[Any] = []
    text: dict[str, Any] | None = None
    for said in (_listed(cell, read) for name, cell in there.items() if not beside(name)):
        if not isinstance(said, str):
            raw, text = raw + said, None
        elif text:  # of several one after another
            text["content"] += f"\n{said}"
        else:
            raw.append(text := {"role": "user", "content": said})
    made: list[dict[str, Any]] = []
    for number, message in enumerate(raw):
        _add(made, _message(number, message, read))
    if _SYSTEM in others and not (made and made[0]["role"] == "system"):
        made.insert(0, {"role": "system", "content": read(others[_SYSTEM])})
    made = [message for message in made if message["content"] or message["role"] != "system" or "tools" in message]
    if _TOOLS in others and (tools := _tools(others[_TOOLS])):
        first = made.pop(0) if made and made[0]["role"] == "system" else {"role": "system", "content": ""}
        made.insert(0, first | {"tools": tools})
    for message in made[: 1 + (bool(made) and not made[0]["content"])]:
        if message["role"] == "assistant":  # nobody has asked
            message["weight"] = 0
    return made


def _add(made: list[dict[str, Any]], message: dict[str, Any]) -> None:
    """Another message; calls alone are those of the turn that they follow, which would end before them otherwise."""
    last = made[-1] if made else {}
    if "tool_calls" in message and not message["content"] and last.get("role") == "assistant" and (last["content"] or "tool_calls" in last):
        last["tool_calls"] = _written(json.loads(last.get("tool_calls", "[]")) + json.loads(message["tool_calls"]))
    else:
        made.append(message)


def learned(message: dict[str, Any]) -> bool:
    """Whether a clean message is to be learned."""
    return bool(message["role"] == "assistant" and message.get("weight") != 0)


def unpacked(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[bool]]:
    """Clean messages as templates take them, the tools, and whether each message is to be learned."""
    tools = json.loads(messages[0].get("tools") or "[]")
    said = [message for message in messages if message["content"] or message["role"] != "system"]
    made = []
    for message in said:
        one = {name: message[name] for name in ("role", "content", *_KEPT) if message.get(name) is not None}
        made.append(one | ({"tool_calls": json.loads(message["tool_calls"])} if message.get("tool_calls") else {}))
    return made, tools, [learned(message) for message in said]


def _listed(cell: Any, read: Callable[[Any], str]) -> list[Any] | str:
    """Raw messages, or a text, which may well begin with a bracket."""
    if isinstance(cell, np.ndarray):
        cell = cell.tolist()
    if isinstance(cell, list):
        return cell
    text = read(cell)
    with contextlib.suppress(DataError):
        found = _text.listed(text)
        if isinstance(found, list) and all(isinstance(message, dict) for message in found):
            return found
    return text


def _message(number: int, message: Any, read: Callable[[Any], str]) -> dict[str, Any]:
    """A clean message; a system that says nothing has no content."""
    role = (message.get("role") or message.get("from")) if isinstance(message, dict) else None
    kind = _ALIKE.get(role, role) if isinstance(role, str) else None
    if kind not in ROLES + _CALLS:
        raise DataError(f'message {number} is not {{"role": one of {", ".join(ROLES)}, "content": ...}}')
    content = message["value"] if message.get("content") is None and message.get("value") is not None else message.get("content")
    calls = message.get("tool_calls") if message.get("function_call") is None else [message["function_call"]]
    try:
        if kind in _CALLS:
            kind, content, calls = "assistant", None, read(content) if isinstance(content, str | bytes) else content
        made = {"role": kind, "content": _content(content, kind, read)}
        if kind == "assistant" and calls is not None and (found := _calls(calls)):
            made["tool_calls"] = found
        if kind == "system" and (found := _tools(message.get("tools"))):
            made["tools"] = found
        made |= {name: read(message[name]) for name in _KEPT if not _text.absent(message.get(name))}
        if (weight := message.get("weight")) not in (None, 0, 1):
            raise DataError(f"its weight is 0 or 1, not {weight}")
    except DataError as error:
        raise DataError(f"message {number}: {error.what}") from None
    unsaid = kind == "assistant" and not made["content"] and "tool_calls" not in made
    return made | ({"weight": 0} if weight == 0 or unsaid else {})


def _content(content: Any, role: str, read: Callable[[Any], str]) -> str:
    """What a message says; the user must say something."""
    content = content.tolist() if isinstance(content, np.ndarray) else content
    if isinstance(content, list) and content and all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in content):
        if other := [part["type"] for part in content if part["type"] != "text"]:
            raise DataError(f"a part of it is of type '{other[0]}'; conversations here are of text alone")
        content = "".join(str(part.get("text", "")) for part in content)
    if role == "tool" and isinstance(content, dict | list):
        content = _written(content)
    return "" if role != "user" and _text.absent(content) else read(content)


def _calls(value: Any) -> str:
    """Calls, as JSON; nothing where there are none."""
    made = []
    for one in _several(value, "the calls are"):
        function = one.get("function") or one
        name, arguments = function.get("name"), function.get("arguments")
        arguments = _parsed(arguments, f"the arguments of '{name}' are") or {}
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise DataError('a call is not {"name": ..., "arguments": {...}}')
        made.append(_template.call(name, _filled(arguments), one.get("id")))
    return _written(made) if made else ""


def _tools(value: Any) -> str:
    """Tools, as JSON; nothing where there are none."""
    made = []
    for one in _several(value, "the tools are"):
        function = one.get("function") or one
        parameters = _parsed(function.get("parameters"), f"the parameters of '{function.get('name')}' are")
        if not isinstance(function.get("name"), str) or not isinstance(parameters, dict | None):
            raise DataError('a tool is not {"name": ..., "description": ..., "parameters": {...}}')
        made.append(_template.tool(function["name"], function.get("description"), _filled(parameters)))
    return _written(made) if made else ""


def _several(value: Any, what: str) -> list[dict[str, Any]]:
    """Objects, of which each or all may be written as text."""
    if _text.absent(value) or value in ("null", b"null"):
        return []
    found = _parsed(value, what)
    listed = [_parsed(one, what) for one in (found if isinstance(found, list) else [found])]
    if not all(isinstance(one, dict) and isinstance(one.get("function") or one, dict) for one in listed):
        raise DataError(f"{what} not a list of objects")
    return listed


def _parsed(value: Any, what: str) -> Any:
    """A list or an object, be it one or the text that JSON or Python writes of it; what is neither stays as it is."""
    try:
        return _text.listed(value, ("[", "{"))
    except DataError:
        raise DataError(f"{what} not valid JSON") from None


def _filled(value: Any) -> Any:
    """An object without the keys that it has as nulls alone: Arrow gives each of a column's objects all the keys that any of them has."""
    if isinstance(value, dict):
        return {name: _filled(one) for name, one in value.items() if one is not None}
    return [_filled(one) for one in value] if isinstance(value, list | np.ndarray) else value


def _written(value: Any) -> str:
    try:
        return _text.unicode(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        raise DataError("it has what JSON has no form for") from None
