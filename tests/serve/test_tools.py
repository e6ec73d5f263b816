"""What OpenAI's clients say of tools and messages beside the usual, by its own client."""

import json

import openai
import pytest
from talking import HELLO, TOOLS, ask, tool

FUNCTIONS = [one["function"] for one in TOOLS]
ALIKE = {"oneOf": [{"type": "integer", "minimum": 3, "maximum": 5}, {"enum": [4, 6]}]}


def allowed(mode, *names):
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize(
    "said",
    [
        {"content": [{"type": "text", "text": "I can't "}, {"type": "refusal", "refusal": "say."}]},
        {"content": [{"type": "refusal", "refusal": "I can't say."}]},
        {"content": None, "refusal": "I can't say."},
    ],
)
def test_a_refusal_is_read_as_text(client, said):
    read = [ask(client, [*HELLO, {"role": "assistant"} | one, *HELLO]) for one in (said, {"content": "I can't say."})]
    assert read[0].usage.prompt_tokens == read[1].usage.prompt_tokens
    assert read[0].choices[0].message.content == read[1].choices[0].message.content


def test_functions_are_an_older_name_of_tools(client):
    """With the same answers; its call is the first, and told in the older form."""
    newer = ask(client, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "weather"}}, max_tokens=100).choices[0]
    options = {"functions": FUNCTIONS, "function_call": {"name": "weather"}, "max_tokens": 100}
    older = ask(client, **options).choices[0]
    assert older.finish_reason == "function_call"
    assert (older.message.content, older.message.tool_calls) == (None, None)
    assert older.message.function_call.model_dump() == newer.message.tool_calls[0].function.model_dump()
    chunks = [chunk.choices[0] for chunk in ask(client, stream=True, **options)]
    (streamed,) = [chunk.delta.function_call for chunk in chunks if chunk.delta.function_call]
    assert streamed.model_dump() == older.message.function_call.model_dump()
    assert chunks[-1].finish_reason == "function_call"
    assert not any(chunk.delta.tool_calls for chunk in chunks)


def test_conversations_with_functions_are_read_as_those_with_tools(client):
    call = {"name": "weather", "arguments": '{"city": "Rome"}'}
    older = [{"role": "assistant", "content": None, "function_call": call}, {"role": "function", "name": "weather", "content": "sun"}]
    answered = {"role": "tool", "tool_call_id": "", "content": "sun"}
    newer = [{"role": "assistant", "tool_calls": [{"type": "function", "id": "", "function": call}]}, answered]
    for choice in ("auto", "none"):
        one = ask(client, HELLO + older, functions=FUNCTIONS, function_call=choice)
        other = ask(client, HELLO + newer, tools=TOOLS, tool_choice=choice)
        assert one.usage.prompt_tokens == other.usage.prompt_tokens
        assert one.choices[0].message.content == other.choices[0].message.content


def test_some_tools_may_be_allowed(client):
    for seed in range(1, 5):
        found = ask(client, tools=TOOLS, tool_choice=allowed("required", "now"), max_tokens=100, seed=seed).choices[0]
        assert [call.function.name for call in found.message.tool_calls] == ["now"]
    both = ask(client, tools=TOOLS, tool_choice=allowed("auto", "weather", "now"))
    assert both.choices[0].message == ask(client, tools=TOOLS).choices[0].message
    one = ask(client, tools=TOOLS, tool_choice=allowed("auto", "now"))
    assert one.choices[0].message == ask(client, tools=TOOLS[1:]).choices[0].message


def test_one_of_several_kinds_that_may_be_alike(client):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": ALIKE, "strict": True}}
    found = [json.loads(choice.message.content) for choice in ask(client, n=4, response_format=form, max_tokens=9).choices]
    assert set(found) <= {3, 4, 5, 6}
    strict = tool({"type": "object", "properties": {"x": ALIKE}, "required": ["x"]})
    strict["function"]["strict"] = True
    (call,) = ask(client, tools=[strict], tool_choice="required", max_tokens=100).choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["x"] in (3, 4, 5, 6)


def test_what_is_of_use_as_a_whole_is_not_cut_at_the_jobs_longest_answer(client):
    """Which is 16 tokens here, and less than a call; LangChain, among others, asks for no other."""
    forced = ask(client, tools=TOOLS, tool_choice="required").choices[0]
    assert (forced.finish_reason, len(forced.message.tool_calls)) == ("tool_calls", 1)
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "a sentence of many letters"}}}
    assert json.loads(ask(client, response_format=form).choices[0].message.content) == "a sentence of many letters"
    assert ask(client, tools=TOOLS).usage.completion_tokens > 16 >= ask(client, tools=TOOLS, tool_choice="none").usage.completion_tokens


@pytest.mark.parametrize("strict", [False, True])
def test_beside_tools_an_answer_fits_its_schema_or_is_a_call(client, strict):
    tools = [{**one, "function": {**one["function"], "strict": strict}} for one in TOOLS]
    answer = {"$defs": {"Sky": {"enum": ["sun", "rain"]}}, "type": "object", "properties": {"sky": {"$ref": "#/$defs/Sky"}}, "required": ["sky"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": answer | {"additionalProperties": False}, "strict": True}}
    how = {"tools": tools, "response_format": form, "max_tokens": 150, "temperature": 1.5}
    found = [choice for seed in range(5) for choice in ask(client, n=4, seed=seed, **how).choices]
    said = {json.loads(choice.message.content).get("sky") for choice in found if choice.finish_reason == "stop"}
    called = [choice.message.tool_calls[0].function for choice in found if choice.finish_reason == "tool_calls"]
    assert said & {"sun", "rain"}
    assert not strict or said <= {"sun", "rain"}, "a random model may call with a number that no JSON has"
    assert {call.name for call in called} <= {"weather", "now"}
    assert called
    assert not strict or all(json.loads(call.arguments).keys() <= {"city"} for call in called)


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"tools": TOOLS, "functions": FUNCTIONS}, "functions", "older name"),
        ({"functions": FUNCTIONS, "function_call": "auto", "tool_choice": "required"}, "function_call", "older name"),
        ({"functions": FUNCTIONS, "function_call": {"name": "x"}}, "function_call", "'x'"),
        ({"functions": FUNCTIONS, "function_call": {}}, "function_call.name", "required"),
        ({"functions": [{"description": "x"}]}, "functions.0.name", "required"),
        ({"functions": [tool({"$ref": 5})["function"]], "function_call": {"name": "f"}}, "functions", "ref"),
        ({"tools": TOOLS, "tool_choice": allowed("auto", "weather", "x")}, "tool_choice", "'x'"),
        ({"tools": TOOLS, "tool_choice": allowed("required")}, "tool_choice", "no tools"),
        ({"tools": TOOLS, "tool_choice": allowed("never", "now")}, "tool_choice.allowed_tools.mode", "auto"),
        ({"messages": [{"role": "assistant", "content": [{"type": "text"}]}]}, "messages.0.content.0.text", "required"),
    ],
)
def test_mistakes_around_tools(client, options, param, message):
    with pytest.raises(openai.BadRequestError, match=message) as found:
        ask(client, **options)
    assert found.value.param == param
