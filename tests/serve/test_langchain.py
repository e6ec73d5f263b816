"""A LangChain agent whose model is the endpoint's."""

from typing import Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain.tools import tool
from langchain_openai import ChatOpenAI
from serving import KEY, served

from lc_ray.serve import auth
from lc_ray.serve.endpoint import Models, asgi


@tool
def weather(city: Literal["Rome", "Oslo"]) -> str:
    """Weather."""
    return f"sun in {city}"


class Once(AgentMiddleware):
    """A random model calls a tool when it must, and would never stop: it must, until it was told what the tool says."""

    def wrap_model_call(self, request, handler):
        told = any(isinstance(message, ToolMessage) for message in request.messages)
        return handler(request.override(tool_choice="none" if told else "required"))


@pytest.fixture(scope="module")
def agent(tiny_language, endpoint):
    """agent(...options of the model) → an agent that has the weather as its tool."""
    one = endpoint(tiny_language)
    with served(asgi(Models([one], one.spec), {auth.digest(KEY): ""})) as place:

        def make(**options):
            options = {"model": "talk", "seed": 1, "max_tokens": 100, "logit_bias": {"1": -100}, "max_retries": 0} | options
            model = ChatOpenAI(base_url=f"http://{place}/v1", api_key=KEY, **options)
            return create_agent(model, tools=[weather], middleware=[Once()])

        yield make


ASKED = {"messages": [HumanMessage("Rome?")]}


def test_an_agent_calls_its_tool_and_ends(agent):
    asked, call, told, answer = agent().invoke(ASKED)["messages"]
    (tool_call,) = call.tool_calls
    assert asked.content == "Rome?"
    assert (tool_call["name"], set(tool_call["args"])) == ("weather", {"city"})
    assert tool_call["args"]["city"] in ("Rome", "Oslo")
    assert told.content == f"sun in {tool_call['args']['city']}"
    assert told.tool_call_id == tool_call["id"]
    assert answer.content
    assert not answer.tool_calls
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.usage_metadata["output_tokens"] == 100


def test_an_agent_that_streams(agent):
    messages = agent().invoke(ASKED)["messages"]
    streamed = [message for message, _ in agent(streaming=True).stream(ASKED, stream_mode="messages")]
    parts = [message for message in streamed if isinstance(message, AIMessageChunk)]
    told = next(message for message in streamed if isinstance(message, ToolMessage))
    assert len(parts) > 20, "token by token"
    assert told.content == messages[2].content
    last = "".join(part.content for part in parts[streamed.index(told) :])
    assert last == messages[3].content
    called = [call for part in parts for call in part.tool_call_chunks]
    assert [call["name"] for call in called] == ["weather"]


def test_a_mistake_reaches_the_caller(agent):
    with pytest.raises(Exception, match="reads 640 tokens"):
        agent(max_tokens=600).invoke(ASKED)
