"""What a model learned of conversations with tools, a LangChain agent on the endpoint can use: nothing has to be forced."""

import json

import pytest
import torch
from artifacts import save
from langchain.agents import create_agent
from langchain.messages import ToolMessage
from langchain.tools import tool
from langchain_openai import ChatOpenAI
from learning import train
from serving import KEY, served
from tokens import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from lc_ray.models import load
from lc_ray.models.batches import TARGET, decode, prepare
from lc_ray.predictor import Predictor
from lc_ray.serve import auth
from lc_ray.serve.endpoint import Models, asgi
from lc_ray.spec import InputSpec, ModelSpec
from lc_ray.tasks.text_generation import Task

TEMPLATE = """{% if tools %}{% for t in tools %}{{ t.function.name }} {% endfor %}<end>{% endif %}{% for m in messages %}<{{ m.role }}>\
{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<end>{% endfor %}\
{% if add_generation_prompt %}<assistant>{% endif %}"""
PLACES, SKIES = {"north?": "A", "south?": "B"}, {"ice": "cold", "sun": "warm"}
SKY = {"name": "sky", "description": "of a city", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}}


def talk(asked, sky):
    call = {"id": "1", "type": "function", "function": {"name": "sky", "arguments": json.dumps({"at": PLACES[asked]})}}
    said = [{"role": "user", "content": asked}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    said += [{"role": "tool", "tool_call_id": "1", "content": sky}, {"role": "assistant", "content": SKIES[sky]}]
    return {"messages|tools": {"messages": said, "tools": [{"type": "function", "function": SKY}]}}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    torch.manual_seed(0)
    base, column = tmp_path_factory.mktemp("base"), "messages|tools"
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    special = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    LlamaForCausalLM(LlamaConfig(vocab_size=260, max_position_embeddings=256, **shape, **special)).save_pretrained(base)
    byte_tokenizer(TEMPLATE).save_pretrained(base)
    inputs = [InputSpec(column=column, modality="chat", base=str(base), max_length=160)]
    columns = load.modalities(inputs)
    task = Task(labelled=False, max_new_tokens=70).bind(columns)
    clean = [decode(talk(asked, sky), columns)[column] for asked in PLACES for sky in SKIES]
    model = load.pretrained(ModelSpec(), inputs, task)
    train(model, task, prepare({column: clean}, columns) | {TARGET: [None] * len(clean)}, columns, 80, 1e-2, size=4)
    return Predictor(save(tmp_path_factory.mktemp("language") / "agent", model, task, inputs), 1)


@pytest.mark.parametrize("streaming", [False, True])
def test_an_agent_calls_what_its_model_has_learned_to_call_and_ends(learned, endpoint, streaming):
    @tool
    def sky(at: str) -> str:
        """Of a city."""
        return {"A": "ice", "B": "sun"}[at]

    one = endpoint(learned)
    with served(asgi(Models([one], one.spec), {auth.digest(KEY): ""})) as place:
        model = ChatOpenAI(base_url=f"http://{place}/v1", api_key=KEY, model="agent", temperature=0, max_retries=0, streaming=streaming)
        for asked, place_asked, said in (("north?", "A", "cold"), ("south?", "B", "warm")):
            _, call, told, answer = create_agent(model, tools=[sky]).invoke({"messages": [("user", asked)]})["messages"]
            assert [(one["name"], one["args"]) for one in call.tool_calls] == [("sky", {"at": place_asked})]
            assert isinstance(told, ToolMessage)
            assert (answer.content, answer.response_metadata["finish_reason"]) == (said, "stop")


def test_a_row_may_have_its_tools(learned):
    row = talk("north?", "sun")["messages|tools"]
    asked = {**row, "messages": row["messages"][:3]}
    assert [answer["text"] for answer in learned.predict([asked, {"messages|tools": asked}, row])] == ["warm"] * 3
