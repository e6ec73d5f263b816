"""Conversations as a tokenizer's chat template writes them, in training and when asked alike."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from jinja2 import TemplateError

REFUSED = (TemplateError, TypeError)  # what a template raises that does not take a conversation
OPEN, CLOSE = "<tool_call>", "</tool_call>"
# For chat templates that do not know of tools; the form in which Hermes, Qwen and SmolLM2 were taught them.
_TOLD = """You may call functions. Their signatures, as JSON:
<tools>
{tools}
</tools>
To call one, answer with its name and arguments, and nothing else:
<tool_call>
{{"name": <function>, "arguments": <object>}}
</tool_call>"""


def tool(name: str, description: str | None = None, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    """A function that may be called, as templates take it."""
    function = {"name": name, "description": description or "", "parameters": parameters or {"type": "object", "properties": {}}}
    return {"type": "function", "function": function}


def call(name: str, arguments: Any, identity: str | None = None) -> dict[str, Any]:
    """A call, as templates take it: its arguments as an object."""
    return {"type": "function", "id": identity or "", "function": {"name": name, "arguments": arguments}}


def opens(tokenizer: Any, tools: list[dict[str, Any]]) -> bool:
    """Whether what is written with these tools has calls between `OPEN` and `CLOSE`."""
    template = _source(tokenizer, tools)
    return "tools" not in template or OPEN in template


def write(tokenizer: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, asked: bool) -> str:
    """A conversation as the model reads it. Where the template does not know of tools, they are told as part of it.

    Args:
        tokenizer: has the template.
        messages: as templates of transformers take them, the arguments of calls as objects.
        tools: that may be called.
        asked: whether it is for the assistant to speak.

    Raises:
        TemplateError, TypeError: see `REFUSED`.
    """
    if "tools" not in _source(tokenizer, tools):
        messages = [_spelled(message) for message in messages]
        if tools:
            told = _TOLD.format(tools="\n".join(json.dumps(tool["function"]) for tool in tools))
            system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else ""
            messages.insert(0, {"role": "system", "content": f"{system}\n\n{told}" if system else told})
    how = {"tools": tools or None, "tokenize": False, "add_generation_prompt": asked}
    renamed = [_renamed(message) for message in messages]
    try:
        return str(tokenizer.apply_chat_template(messages, **how))
    except TemplateError:
        for other in (renamed, _told_by_user(messages), _told_by_user(renamed)):
            if other != messages:
                with suppress(TemplateError):
                    return str(tokenizer.apply_chat_template(other, **how))
        raise


def _told_by_user(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages of which the user's first begins with what the system says, for templates that know no system, as Gemma's."""
    match messages:
        case [{"role": "system", "content": str(told)}, {"role": "user", "content": str(said)} as user, *others]:
            return [user | {"content": f"{told}\n\n{said}"}, *others]
    return messages


def _renamed(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose calls have names of 9 letters and digits, as Mistral's templates want them."""
    answered = {"tool_call_id": _short(message["tool_call_id"])} if message.get("tool_call_id") else {}
    called = {"tool_calls": [call | {"id": _short(call["id"])} for call in message["tool_calls"]]} if message.get("tool_calls") else {}
    return message | answered | called


def _short(name: str) -> str:
    return "".join(filter(str.isalnum, name))[-9:].rjust(9, "0")


def _source(tokenizer: Any, tools: list[dict[str, Any]] | None) -> str:
    """The template of conversations with these tools: a tokenizer may have one of its own for them."""
    return str(tokenizer.get_chat_template(tools=tools or None))


def _spelled(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose calls are a part of what it says."""
    if not (calls := message.get("tool_calls")):
        return message
    said = [message["content"]] if message["content"] else []
    said += [f"{OPEN}\n{json.dumps(call['function'])}\n{CLOSE}" for call in calls]
    return {"role": message["role"], "content": "\n".join(said)}
