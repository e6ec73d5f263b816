"""OpenAI's own client, on a socket."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from talking import HELLO, TOOLS, ask, tool
from tokens import byte_tokenizer

from lc_ray.serve.generation import Ask, Piece
from lc_ray.serve.protocols._openai_answer import Chat
from lc_ray.serve.protocols._openai_tools import calls
from lc_ray.serving import ServeSpec

SCHEMA = {"type": "object", "properties": {"on": {"type": "boolean"}, "n": {"enum": [1, 2]}}, "required": ["on", "n"], "additionalProperties": False}


def test_models_are_listed_for_both(client, url):
    assert [model.id for model in client.models.list()] == ["talk", "tiny"]
    assert client.models.retrieve("talk").object == "model"
    assert httpx.get(f"{url}/v1/models", headers={"authorization": "Bearer secret"}).json()["models"] == ["talk", "tiny"]


def test_the_assistant_answers(client, tiny_language):
    answer = ask(client, temperature=0, logit_bias=None)
    expected = tiny_language.predict([HELLO])[0]["text"]
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].message.role == "assistant"
    assert answer.model == "talk"
    prompt = tiny_language.task.modality._written(HELLO)
    assert answer.usage.prompt_tokens == len(tiny_language.task.tokenizer(prompt)["input_ids"])
    assert answer.usage.completion_tokens <= 16, "as many as the model's job says, where the request doesn't"


def test_fields_that_openai_always_gives_are_there(url):
    """Those that its description calls required, as clients in other languages read them."""
    body = {"model": "talk", "messages": HELLO, "max_tokens": 2, "logprobs": True}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers={"authorization": "Bearer secret"}, timeout=30).json()
    assert {"id", "choices", "created", "model", "object"} <= answer.keys()
    (choice,) = answer["choices"]
    assert {"finish_reason", "index", "message", "logprobs"} <= choice.keys()
    assert {"role", "content", "refusal"} <= choice["message"].keys()
    assert {"content", "refusal"} <= choice["logprobs"].keys()
    assert all({"token", "logprob", "bytes", "top_logprobs"} <= token.keys() for token in choice["logprobs"]["content"])


def test_a_stream_is_the_whole_in_pieces(client):
    options = {"n": 2, "max_completion_tokens": 20, "logprobs": True, "top_logprobs": 2}
    whole = ask(client, **options)
    texts, tokens, finish, usage = ["", ""], [[], []], [None, None], None
    for chunk in ask(client, stream=True, stream_options={"include_usage": True}, **options):
        assert usage is None, "it is in the last"
        assert "usage" in chunk.model_fields_set
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            tokens[choice.index] += choice.logprobs.content if choice.logprobs else []
            finish[choice.index] = choice.finish_reason or finish[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert tokens == [choice.logprobs.content for choice in whole.choices]
    assert finish == [choice.finish_reason for choice in whole.choices] == ["length", "length"]
    assert usage == whole.usage
    assert usage.completion_tokens == 40
    assert all(len(token.top_logprobs) == 2 for token in tokens[0])


def test_the_token_that_ends_an_answer_is_counted_and_not_told(client):
    ended = {"max_tokens": 5, "logit_bias": {"1": 100}, "seed": 1}
    chat = ask(client, logprobs=True, **ended)
    assert (chat.choices[0].message.content, chat.choices[0].logprobs.content, chat.choices[0].finish_reason) == ("", [], "stop")
    *_, last = ask(client, stream=True, stream_options={"include_usage": True}, **ended)
    completion = client.completions.create(model="talk", prompt="Hello", n=2, **ended)
    assert [answer.usage.completion_tokens for answer in (chat, last, completion)] == [1, 1, 2]


def test_what_was_said_before_is_read_once(client):
    messages = [*HELLO, {"role": "user", "content": "Why? " * 20}]
    said = ask(client, messages, max_completion_tokens=20, seed=None)
    assert said.usage.prompt_tokens_details.cached_tokens < 64
    on = [*messages, {"role": "assistant", "content": said.choices[0].message.content}, {"role": "user", "content": "And then?"}]
    *_, last = ask(client, on, stream=True, stream_options={"include_usage": True})
    assert said.usage.prompt_tokens <= last.usage.prompt_tokens_details.cached_tokens < last.usage.prompt_tokens


def test_completions(client):
    both = client.completions.create(model="talk", prompt=["one", "two"], seed=1, max_tokens=6, logprobs=2, logit_bias={"1": -100})
    ids = client.completions.create(model="talk", prompt=[[ord(c) for c in "ab"]], seed=1, max_tokens=6)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text != both.choices[1].text
    assert len(both.choices[1].logprobs.token_logprobs) == 6
    assert ids.usage.prompt_tokens == 2
    streamed = ["", ""]
    for chunk in client.completions.create(model="talk", prompt=["one", "two"], seed=1, max_tokens=6, stream=True, logit_bias={"1": -100}):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [choice.text for choice in both.choices]


def test_stop(client):
    text = ask(client).choices[0].message.content
    cut = ask(client, stop=[text[4:6]]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (text[: text.index(text[4:6])], "stop")


def test_answers_fit_a_schema(client):
    form = {"type": "json_schema", "json_schema": {"name": "state", "schema": SCHEMA, "strict": True}}
    found = [json.loads(choice.message.content) for choice in ask(client, n=4, response_format=form, max_tokens=64).choices]
    assert all(set(one) == {"on", "n"} and isinstance(one["on"], bool) and one["n"] in (1, 2) for one in found)
    assert ask(client, response_format={"type": "json_object"}).choices[0].message.content[0] == "{"
    streamed = ask(client, response_format=form, max_tokens=64, stream=True)
    assert json.loads("".join(chunk.choices[0].delta.content or "" for chunk in streamed)) == found[0]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_tools_that_must_be_called(client, choice):
    found = ask(client, tools=TOOLS, tool_choice=choice, max_tokens=100).choices[0]
    (call,) = found.message.tool_calls
    assert found.finish_reason == "tool_calls"
    assert found.message.content is None
    assert call.function.name in (["weather", "now"] if choice == "required" else ["weather"])
    arguments = json.loads(call.function.arguments)
    assert arguments == {} if call.function.name == "now" else arguments["city"] in ("Rome", "Oslo")
    chunks = [c.choices[0] for c in ask(client, tools=TOOLS, tool_choice=choice, max_tokens=100, stream=True)]
    streamed = [call for c in chunks for call in c.delta.tool_calls or []]
    assert [(one.function.name, one.function.arguments) for one in streamed] == [(call.function.name, call.function.arguments)]
    assert chunks[-1].finish_reason == "tool_calls"
    assert not any(c.delta.content for c in chunks)


def test_conversations_with_tools_are_read(client, tiny_language):
    talk = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Rome?"}]},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "sun"},
    ]
    usage = ask(client, talk, tools=TOOLS[1:], max_tokens=1).usage
    written = """<user>[{"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}, \
"additionalProperties": false}}}] <tool_call><end><system>Be brief.<end>
<user>Rome?<end>
<assistant><tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call><end>
<tool>sun<end>
<assistant>"""
    assert usage.prompt_tokens == len(tiny_language.task.tokenizer(written)["input_ids"])


@pytest.mark.parametrize("written", ["[" * 300, "{", "[" * 150 + "]" * 150])
def test_arguments_that_are_no_json_are_read_as_text(client, written):
    called = {"id": "1", "type": "function", "function": {"name": "f", "arguments": written}}
    assert ask(client, [*HELLO, {"role": "assistant", "tool_calls": [called]}], tools=TOOLS[1:], max_tokens=1).choices


def test_no_arguments_are_empty_ones(client):
    calls = [{"id": "1", "type": "function", "function": {"name": "now", "arguments": arguments}} for arguments in ("", "{}")]
    one, other = (ask(client, [*HELLO, {"role": "assistant", "tool_calls": [call]}], tools=TOOLS[1:], max_tokens=1).usage for call in calls)
    assert one.prompt_tokens == other.prompt_tokens


NO_CALLS = ["[" * 999, '{"name": "f", "arguments": ' + "[" * 2000, "[]", "<tool_call>[]</tool_call>", '{"name": "f", "arguments": 5}', "<tool_call>{"]
NO_CALLS += ['{"name": ["f"], "arguments": {}}', '{"name": {}}']
NO_CALLS += ['<tool_call>{"name": "f", "arguments": {}}}</tool_call>', '<tool_call>{"name": "f"} Bye', '{"name": "f", "arguments": {"x": NaN}}']


@pytest.mark.parametrize("text", NO_CALLS)
def test_what_a_model_says_and_is_no_call_stays_text(text):
    assert calls(text, {"f": {}}) == (text, [])


@pytest.mark.parametrize("end", ["</tool_call>", "</tool_", ""])
def test_a_call_may_be_cut_off_behind_its_json(end):
    assert calls(f'<tool_call>{{"name": "f"}}{end}', {"f": {}})[0] == ""


def test_calls_end_where_their_json_does():
    one, other = ('{"name": "f", "arguments": {"x": "' + x + '"}}' for x in ("</tool_call>", "y"))
    rest, made = calls(f"Sure. <tool_call>\n{one}\n</tool_call>\n<tool_call>{other}", {"f": {}})
    assert [json.loads(call["function"]["arguments"])["x"] for call in made] == ["</tool_call>", "y"]
    assert rest == "Sure."


CODED = """Sure.
<tool_call>
<function=f>
<parameter=text>
two
lines: 5
</parameter>
<parameter=number>
5
</parameter>
<parameter=zip>
05
</parameter>
<parameter=none>
null
</parameter>
<parameter=list>
["x"]
</parameter>
</function>
</tool_call>
<tool_call>
<function=f>
</function>
</tool_call>"""


def test_calls_whose_arguments_are_written_without_quotes():
    """As Qwen3-Coder's template does, and those after it."""
    string, maybe = {"type": "string"}, {"type": ["string", "null"]}
    properties = {"text": string, "zip": string, "none": maybe, "number": {"type": "integer"}, "list": {"type": "array"}}
    rest, made = calls(CODED, {"f": {"type": "object", "properties": properties}})
    assert rest == "Sure."
    expected = {"text": "two\nlines: 5", "number": 5, "zip": "05", "none": None, "list": ["x"]}
    assert [json.loads(call["function"]["arguments"]) for call in made] == [expected, {}]
    assert calls(CODED, {"g": {}}) == (CODED, [])
    for end in range(CODED.index("<tool_call>") + 1, CODED.index("</function>") + 10):
        assert calls(CODED[:end], {"f": {}}) == (CODED[:end], []), "it is cut off"


def test_a_call_of_half_a_letter_can_be_sent():
    for written in (r'{"x": "\ud800"}', r'"{\"x\": \"\ud800\"}"'):
        _, (call,) = calls(f'<tool_call>{{"name": "f", "arguments": {written}}}</tool_call>', {"f": {}})
        assert json.loads(call["function"]["arguments"].encode()) == {"x": "\ud800"}


ONE = {"a": 1}.__eq__
ENDS = {"1": -100} | {str(byte_tokenizer("").convert_tokens_to_ids(mark)): 5 for mark in '"}]'}  # else such a model rambles on
NODE = {"type": "object", "properties": {"on": {"const": 1}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["on"]}
REFERS = {"$ref": "#/x", "$id": "y"}  # no schema, where a value is meant
NAMES = ["const", "default", "enum", "examples", "$id"]  # of fields, whose schemas are such
PYDANTIC = {"format": "path"}, {"type": "array", "uniqueItems": True}, {"oneOf": [{"const": 1}, {"const": 2}]}, {"propertyNames": {"enum": ["a"]}}


@pytest.mark.parametrize(
    ("parameters", "fits"),
    [
        ({"type": "object", "properties": {"$ref": {"enum": ["x"]}}, "required": ["$ref"]}, lambda found: found == {"$ref": "x"}),
        ({}, lambda found: isinstance(found, dict)),
        ({"$defs": []}, lambda found: isinstance(found, dict)),
        ({"$id": "https://there.example/x", "$defs": {"A": {"const": 1}}, "properties": {"a": {"$ref": "#/$defs/A"}}, "required": ["a"]}, ONE),
        ({"properties": {"a": {"const": REFERS, "default": REFERS}}, "required": ["a"]}, lambda found: found == {"a": REFERS}),
        (
            {"$defs": {"A": {"const": 1}}, "properties": {name: {"$ref": "#/$defs/A"} for name in NAMES}, "required": NAMES},
            lambda found: found == dict.fromkeys(NAMES, 1),
        ),
        (NODE, lambda found: found["on"] == 1 and (found.get("next") is None or found["next"]["on"] == 1)),
        ({"properties": {"a": {"const": 1}, "b": {"$ref": "#/properties/a"}}, "required": ["a", "b"]}, lambda found: found == {"a": 1, "b": 1}),
        *(({"properties": {"a": part}}, lambda found: set(found) <= {"a"}) for part in PYDANTIC),
    ],
)
def test_whatever_parameters_a_tool_has_its_call_fits(client, parameters, fits):
    made = []
    for seed in range(1, 9):
        found = ask(client, tools=[tool(parameters)], tool_choice="required", max_tokens=200, seed=seed, logit_bias=ENDS).choices[0]
        assert found.finish_reason in ("tool_calls", "length")
        made += found.message.tool_calls or []
        if len(made) == 2:
            break
    assert made
    assert all(fits(json.loads(call.function.arguments)) for call in made)


def test_a_strict_tool_is_kept_to_or_refused(client):
    strict = tool({"properties": {"a": PYDANTIC[0]}})
    strict["function"]["strict"] = True
    with pytest.raises(openai.BadRequestError, match="path") as found:
        ask(client, tools=[strict], tool_choice="required")
    assert found.value.param == "tools"


ENDLESS = {"type": "array", "minItems": 10**9, "items": {"const": 1}}, {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}


@pytest.mark.parametrize("schema", ENDLESS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_breaks_while_it_is_kept_to_fails_alone(client, schema, stream):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with ThreadPoolExecutor() as pool:
        beside = pool.submit(ask, client, max_tokens=200)
        with pytest.raises(openai.APIError, match="can't be kept to") as found:
            list(ask(client, response_format=form, stream=stream, max_tokens=64))
        assert "<state>" not in str(found.value)
        assert beside.result().usage.completion_tokens == 200


def test_a_stream_loses_nothing_around_a_call():
    pieces = ["\n\nSure. ", '<tool_call>{"name": "f"}</tool_call>' * 2, " Bye"]
    chat = Chat("talk", "1", None, False, {"f": {}}, forced=False, most=1)
    chat.begin("x", 0, [Ask([1], 9)])
    told = [p["choices"][0]["delta"] for n, text in enumerate(pieces) for p in chat.chunks(Piece(0, text, (), "stop" if n == 2 else None))]
    assert "".join(delta.get("content", "") for delta in told) == "\n\nSure.  Bye"
    assert [call["function"]["name"] for delta in told for call in delta.get("tool_calls", [])] == ["f"]
    (whole,) = chat.whole()["choices"]
    assert whole["message"]["content"] == "Sure.  Bye"


def test_fields_that_are_null_or_change_nothing(client):
    options = {"n": None, "stream": None, "stream_options": {"include_usage": None}, "modalities": ["text"], "verbosity": "low"}
    options["prediction"] = {"type": "content", "content": "x"}
    assert ask(client, extra_body=options, max_tokens=2).choices


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "system"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages.0.content.0.type", "text"),
        ({"messages": [{"role": "user", "content": "x" * 700}]}, "messages", "reads 640 tokens"),
        ({"max_tokens": 640}, "messages", "640 tokens were asked for"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
        ({"n": 5}, "n", "4 answers"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"stop": ["x" * 257]}, "stop.0", "at most 256"),
        ({"messages": [{}] * 1000}, "messages.0.role", "required"),
        ({"logit_bias": {str(i): 0 for i in range(1001)}}, "logit_bias", "1000"),
        ({"logit_bias": {"999": 1}}, "logit_bias", "no token 999"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "less than or equal to 100"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tools": [tool({"$ref": 5})], "tool_choice": "required"}, "tools", "ref"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "'x'"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "x"}}}}, "response_format", "schema"),
        ({"extra_body": {"best": 1}}, "best", "not known"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_mistakes_in_openais_form(client, options, param, message, stream):
    with pytest.raises(openai.BadRequestError, match=message) as found:
        ask(client, stream=stream, **options)
    assert found.value.param == param
    assert found.value.type == "invalid_request_error"


def test_answers_that_do_not_fit_into_the_cache_together(client, endpoints, monkeypatch):
    monkeypatch.setattr(endpoints[0].generator, "spec", ServeSpec(batch={"max": 4, "tokens": 100}, timeout="60s"))
    with pytest.raises(openai.BadRequestError, match="640 tokens") as found:
        ask(client, n=4, max_tokens=600)
    assert found.value.param == "n"
    assert len(ask(client, n=4, max_tokens=8).choices) == 4


def test_other_models_and_no_key(client, url):
    with pytest.raises(openai.NotFoundError, match="'tiny' is no language model"):
        client.chat.completions.create(model="tiny", messages=HELLO)
    with pytest.raises(openai.NotFoundError, match="talk, tiny"):
        client.chat.completions.create(model="large", messages=HELLO)
    with pytest.raises(openai.AuthenticationError) as found, openai.OpenAI(base_url=f"{url}/v1", api_key="guess") as stranger:
        ask(stranger)
    assert found.value.type == "authentication_error"


def test_a_field_whose_name_is_half_a_letter(url):
    body = r'{"model": "talk", "messages": [{"role": "user", "content": "Hello"}], "\ud800": 1}'
    response = httpx.post(f"{url}/v1/chat/completions", content=body, headers={"authorization": "Bearer secret"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_value"


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_is_not_answered_on(url, endpoints, stream, monkeypatch):
    generator, steps = endpoints[0].generator, []
    step = generator._decoder.step
    monkeypatch.setattr(generator._decoder, "step", lambda tokens: steps.append(tokens) or time.sleep(0.01) or step(tokens))
    body = {"model": "talk", "messages": HELLO, "max_tokens": 600, "stream": stream, "logit_bias": {"1": -100}}
    with httpx.Client(headers={"authorization": "Bearer secret"}, timeout=0.3) as impatient:
        if stream:
            with impatient.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                impatient.post(f"{url}/v1/chat/completions", json=body)
    start = time.monotonic()
    while generator.running:
        assert time.monotonic() - start < 120
        time.sleep(0.01)
    assert len(steps) < 590, "the answer was made to its end"


def test_a_stream_that_takes_too_long_ends_with_a_sentence(client, endpoints):
    generator = endpoints[0].generator
    before, generator.spec = generator.spec, generator.spec.model_copy(update={"timeout": 0.3})
    try:
        with pytest.raises(openai.APIError, match=r"not answered within 0\.3 s"):
            list(ask(client, max_tokens=600, stream=True))
        with pytest.raises(openai.InternalServerError, match=r"not answered within 0\.3 s"):
            ask(client, max_tokens=600)
    finally:
        generator.spec = before
