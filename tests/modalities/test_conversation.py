"""Conversations with tools, and the other forms in which files have them, down to which tokens are learned."""

import json

import numpy as np
import pyarrow as pa
import pytest
from tokens import byte_tokenizer

from lc_ray.errors import DataError
from lc_ray.modalities._conversation import KNOWN, SAID
from lc_ray.modalities.chat import Modality
from lc_ray.spec import InputSpec
from lc_ray.tasks.text_generation import Task

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
TOOLS = """{% if tools %}<tools>{{ tools | tojson }}<end>{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}\
{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}{% endfor %}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
ALTERNATE = """{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}\
<{{ m.role }}>{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
FORGETS = TOOLS.replace("{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}{% endfor %}", "")
# As Qwen3's: an empty thought in the last turn alone; as DeepSeek-R1's: one is begun where the assistant is to speak; as Phi-3's: an end of all.
THINKS = TOOLS.replace("{{ m.content }}", "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}")
BEGINS = TOOLS.replace("<assistant>{% endif %}", "<assistant><think>\n{% endif %}")
ENDS = TURNS.replace("<assistant>{% endif %}", "<assistant>{% else %}<bye>{% endif %}").replace("<end>", "<turn>")
ENDLESS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"

FUNCTION = {"name": "weather", "description": "of a city", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CITY = {"name": "weather", "arguments": {"city": "Rome"}}
ASKED, SAYS = {"role": "user", "content": "Rome?"}, {"role": "assistant", "content": "Sunny."}
ANSWER = {"role": "tool", "content": "sun"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {**CITY, "arguments": '{"city": "Rome"}'}}]}
TALK = {"messages": [ASKED, CALL, {**ANSWER, "tool_call_id": "1"}, SAYS], "tools": [{"type": "function", "function": FUNCTION}]}
WRITTEN = f"<tools>{json.dumps([{'type': 'function', 'function': FUNCTION}])}<end><user>Rome?<end><assistant><call>{json.dumps(CITY)}<end>"
WRITTEN += "<tool>sun<end><assistant>Sunny.<end>"


@pytest.fixture
def make(tmp_path):
    def make(template, column="messages|tools", max_length=1000):
        tokenizer = byte_tokenizer(template)
        tokenizer.add_tokens(["<think>", "</think>", "<bye>", "<turn>", "<call>"], special_tokens=True)
        tokenizer.save_pretrained(tmp_path)
        return Modality(InputSpec(column=column, modality="chat", base=str(tmp_path), max_length=max_length), tmp_path)

    return make


def read(chat, value):
    """What the model reads, and what of it is learned."""
    parts = chat.prepare(pa.array([chat.decode(value)], Modality.TYPE).to_pylist())
    ids, mask = np.array(parts["input_ids"][0]), np.array(parts["mask"][0])
    runs = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(mask)) + 1)
    return chat.tokenizer.decode(ids), [chat.tokenizer.decode(ids[run]) for run in runs if mask[run[0]] == SAID]


def sharegpt(*said, **beside):
    return {"messages": [{"from": who, "value": what} for who, what in said], **beside}


FORMS = [
    TALK,
    {"messages": json.dumps(TALK["messages"]), "tools": json.dumps(TALK["tools"])},
    {"messages": str(TALK["messages"]), "tools": str(TALK["tools"])},
    {**TALK, "tools": [json.dumps(FUNCTION)]},
    {**TALK, "tools": [{**TALK["tools"][0], "function": {**FUNCTION, "strict": True, "parameters": json.dumps(FUNCTION["parameters"])}}]},
    {**TALK, "messages": [ASKED, {**CALL, "content": "", "tool_calls": [{"function": CITY}]}, ANSWER, SAYS]},
    {**TALK, "messages": [ASKED, {"role": "assistant", "function_call": CITY}, {**ANSWER, "role": "function"}, SAYS]},
    sharegpt(("human", "Rome?"), ("function_call", json.dumps(CITY)), ("observation", "sun"), ("gpt", "Sunny."), tools=json.dumps([FUNCTION])),
    sharegpt(("human", "Rome?"), ("tool_call", json.dumps([CITY])), ("tool_response", "sun"), ("gpt", "Sunny."), tools=[FUNCTION], system=""),
    [{"role": "system", "content": "", "tools": [FUNCTION]}, *TALK["messages"]],
]


@pytest.mark.parametrize("value", FORMS)
def test_a_conversation_with_tools_in_each_form(make, value):
    chat = make(TOOLS)
    assert read(chat, value) == (WRITTEN, [f"<call>{json.dumps(CITY)}<end>", "Sunny.<end>"])
    shown = chat.show({"messages": chat.prepare([chat.decode(value)])["messages"][0]})
    assert chat.decode(shown) == chat.decode(value), "a request may carry it"


def test_calls_that_follow_what_is_said_are_of_one_turn(make):
    called = json.dumps(CITY)
    said = [("human", "Rome?"), ("gpt", "I look."), ("function_call", called), ("function_call", called), ("observation", "sun"), ("gpt", "Sunny.")]
    assert read(make(TOOLS), sharegpt(*said))[1] == [f"I look.<call>{called}<call>{called}<end>", "Sunny.<end>"]


def test_of_a_table_no_call_has_the_arguments_of_another(make):
    other = {"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "now", "arguments": {"zone": 1}}}]}
    calls = {**CALL, "tool_calls": [{**CALL["tool_calls"][0], "function": CITY}]}
    rows = pa.Table.from_pylist([{**TALK, "messages": [ASKED, calls, ANSWER, SAYS]}, {"messages": [ASKED, other], "tools": None}]).to_pylist()
    chat = make(TOOLS)
    assert read(chat, rows[0])[0] == WRITTEN
    assert read(chat, rows[1])[0] == '<user>Rome?<end><assistant>x<call>{"name": "now", "arguments": {"zone": 1}}<end>'


def test_a_template_without_tools_is_told_them_as_when_asked(make):
    text, learned = read(make(TURNS), TALK)
    assert learned == [f"<tool_call>\n{json.dumps(CITY)}\n</tool_call><end>", "Sunny.<end>"]
    assert text.startswith("<system>You may call functions.")
    assert json.dumps(FUNCTION) in text
    assert "<tool>sun<end>" in text


def test_names_of_calls_are_as_long_as_a_template_wants_them(make):
    """Mistral's want 9 letters and digits; OpenAI's and ours are longer, and others have but a number."""
    wants = "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('ids of length 9') }}{% endif %}{{ c.id }}"
    chat = make(TOOLS.replace("{% for c in m.tool_calls or [] %}", wants).replace("<{{ m.role }}>", "<{{ m.role }}{{ m.tool_call_id }}>"))
    for own, written in (("call_0123456789abcdef", "789abcdef"), ("1", "000000001"), ("abcdefghi", "abcdefghi")):
        call = {**CALL, "tool_calls": [{**CALL["tool_calls"][0], "id": own}]}
        text, learned = read(chat, {**TALK, "messages": [ASKED, call, {**ANSWER, "tool_call_id": own}, SAYS]})
        assert f"<tool{written}>" in text
        assert learned == [f"{written}<call>{json.dumps(CITY)}<end>", "Sunny.<end>"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (FORGETS, "leaves out the calls"),
        (TOOLS.replace("{{ tools | tojson }}", ""), "leaves out the tools"),
        (ALTERNATE, "refuses the conversation with tools: roles must alternate"),
    ],
)
def test_a_template_that_has_no_place_for_tools_is_refused(make, template, message):
    with pytest.raises(DataError, match=message):
        make(template).decode(TALK)
    assert read(make(template), [ASKED, SAYS])[1] == ["Sunny.<end>"]


def test_where_a_template_knows_no_system_the_user_says_it(make):
    """Gemma's and the first of Mistral's raise."""
    text, learned = read(make(ALTERNATE), [{"role": "system", "content": "Be brief."}, ASKED, SAYS])
    assert text == "<user>Be brief.\n\nRome?<end><assistant>Sunny.<end>"
    assert learned == ["Sunny.<end>"]
    text, _ = read(make(ALTERNATE), {**TALK, "messages": [ASKED, SAYS]})
    assert text.startswith("<user>You may call functions.")
    assert text.endswith("\n\nRome?<end><assistant>Sunny.<end>")


def test_a_system_alone_may_be_refused(make):
    with pytest.raises(DataError, match="refuses the conversation: roles must alternate"):
        make(ALTERNATE).decode([{"role": "system", "content": "Be brief."}])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([ASKED, {**CALL, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "message 1: the arguments of 'f' are not valid JSON"),
        ([ASKED, {**CALL, "tool_calls": [{"function": {"arguments": {}}}]}], "message 1: a call is not"),
        ([ASKED, {**CALL, "tool_calls": [{"name": "f", "arguments": [1]}]}], "message 1: a call is not"),
        ([ASKED, {**CALL, "tool_calls": [5]}], "message 1: the calls are not a list of objects"),
        ([ASKED, {"from": "function_call", "value": "weather in Rome"}], "message 1: the calls are not a list of objects"),
        ([ASKED, {"from": "function_call", "value": "{weather in Rome}"}], "message 1: the calls are not valid JSON"),
    ],
)
def test_calls_that_are_none(make, messages, message):
    with pytest.raises(DataError, match=message):
        make(TOOLS).decode(messages)


@pytest.mark.parametrize(("tools", "message"), [("{", "the tools are not valid JSON"), ([{"type": "x"}], "a tool is not"), (5, "a list of objects")])
def test_tools_that_are_none(make, tools, message):
    with pytest.raises(DataError, match=message):
        make(TOOLS).decode({**TALK, "tools": tools})


TWO = [ASKED, CALL, ANSWER, SAYS, {"role": "user", "content": "Oslo?"}, {"role": "assistant", "content": "Snow."}]
CALLED = f"<call>{json.dumps(CITY)}<end>"


@pytest.mark.parametrize(
    ("template", "learned"),
    [
        (TOOLS, [CALLED, "Sunny.<end>", "Snow.<end>"]),
        (THINKS, [CALLED, "Sunny.<end>", "<think></think>Snow.<end>"]),
        (BEGINS, [CALLED, "Sunny.<end>", "Snow.<end>"]),
    ],
)
def test_all_turns_are_learned_whatever_a_template_thinks(make, template, learned):
    assert read(make(template), TWO)[1] == learned


def test_thoughts_are_learned_where_the_template_has_them(make):
    thought = {**SAYS, "reasoning_content": "A city."}
    template = THINKS.replace("<think></think>", "<think>{{ m.reasoning_content }}</think>")
    assert read(make(template), [ASKED, thought])[1] == ["<think>A city.</think>Sunny.<end>"]
    assert read(make(template), [ASKED, thought, ASKED, thought])[1] == ["<think>A city.</think>Sunny.<end>"], "not without what led to it"
    assert read(make(TOOLS), [ASKED, thought, ASKED, thought])[1] == ["Sunny.<end>"] * 2


def test_an_end_of_all_is_learned_once(make):
    plain = [message for message in TWO if message not in (CALL, ANSWER)]
    assert read(make(ENDS), plain)[1] == ["Sunny.<turn>", "Snow.<turn><bye>"]


def test_where_no_token_ends_a_turn_that_of_texts_ends_the_last(make):
    chat = make(ENDLESS)
    assert read(chat, [ASKED, SAYS, ASKED, SAYS])[1] == ["Sunny.\n", "Sunny.\n<end>"]
    assert read(chat, [ASKED, SAYS, ASKED])[1] == ["Sunny.\n"]


def test_an_opening_is_read_and_not_learned(make):
    opening = {"from": "gpt", "value": "Welcome."}
    talk = [opening, ASKED, SAYS]
    assert read(make(TURNS), talk) == ("<assistant>Welcome.<end><user>Rome?<end><assistant>Sunny.<end>", ["Sunny.<end>"])
    assert read(make(ALTERNATE), talk) == ("<user>Rome?<end><assistant>Sunny.<end>", ["Sunny.<end>"]), "a template may have no place for it"
    with pytest.raises(DataError, match="the assistant says nothing"):
        Task.check(None, {"talk": make(TURNS).decode([opening, ASKED])})


@pytest.mark.parametrize("unsaid", [{**SAYS, "weight": 0}, {**SAYS, "content": ""}, {**SAYS, "content": None}])
def test_what_has_no_weight_or_is_empty_is_read_and_not_learned(make, unsaid):
    chat = make(TURNS)
    text, learned = read(chat, [ASKED, unsaid, ASKED, {**SAYS, "weight": 1}])
    assert text == f"<user>Rome?<end><assistant>{unsaid['content'] or ''}<end><user>Rome?<end><assistant>Sunny.<end>"
    assert learned == ["Sunny.<end>"]
    mask = chat.prepare([chat.decode([ASKED, unsaid])])["mask"][0]
    assert mask.count(SAID) == 0 < mask.count(KNOWN)


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("system|instruction|input", ("Be brief.", "Weather?", "Rome?")),
        ("instruction|input|system", ("Weather?", "Rome?", "Be brief.")),
        ("system|messages", ("Be brief.", [{"role": "user", "content": "Weather?\nRome?"}])),
        ("data.messages|data.system", ([{"from": "human", "value": "Weather?\nRome?"}], "Be brief.")),
    ],
)
def test_columns_beside_each_other(make, column, cells):
    chat = make(TURNS, column)
    row = dict(zip(column.split("|"), cells, strict=True))
    assert read(chat, row)[0] == "<system>Be brief.<end><user>Weather?\nRome?<end><assistant>"


def test_a_prompt_and_a_completion_of_messages(make):
    chat = make(TURNS, "prompt|completion")
    assert read(chat, {"prompt": [ASKED], "completion": [SAYS]}) == ("<user>Rome?<end><assistant>Sunny.<end>", ["Sunny.<end>"])
    assert read(chat, {"prompt": "Rome?", "completion": [SAYS]})[1] == ["Sunny.<end>"]


def test_a_system_in_the_conversation_is_that_of_it(make):
    chat = make(TURNS, "messages|system")
    own = [{"role": "system", "content": "Be kind."}, ASKED]
    assert read(chat, {"messages": own, "system": "Be brief."})[0] == "<system>Be kind.<end><user>Rome?<end><assistant>"


def test_a_conversation_without_an_answer_teaches_nothing():
    asked, answered = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
    Task.check(None, {"talk": asked + answered})
    Task.check("a completion", {"talk": asked})
    Task.check(None, {"talk": asked + answered + asked + [{**answered[0], "weight": 0}]})
    with pytest.raises(DataError, match="the assistant says nothing"):
        Task.check(None, {"talk": [*asked, {**answered[0], "weight": 0}]})
    Task.check(None, {"text": "plain"})
    with pytest.raises(DataError, match="the assistant says nothing"):
        Task.check(None, {"talk": asked})
