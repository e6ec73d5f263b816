"""Requests in OpenAI's form, checked field by field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from lc_ray.serve.fields import Generation, Items
from lc_ray.serve.http import HttpError
from lc_ray.tasks._sampling import Sampling


class _Nullable(BaseModel):
    """A field that is null is not given."""

    @model_validator(mode="before")
    @classmethod
    def _given(cls, content: Any) -> Any:
        return {name: value for name, value in content.items() if value is not None} if isinstance(content, dict) else content


class _Open(_Nullable):
    """Whatever else is in it changes no answer."""

    model_config = ConfigDict(extra="ignore")


class StreamOptions(_Open):
    """How an answer is streamed."""

    include_usage: bool = False


class Body(_Nullable, Generation):
    """What both kinds of completions have. Fields without a use here change no answer."""

    model: str | None = None
    n: int = Field(1, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    user: str | None = None

    def sampling(self, vocabulary: int) -> Sampling:
        """How tokens are drawn.

        Raises:
            HttpError: 400, a bias of a token that there is not.
        """
        bias = self.logit_bias or {}
        if unknown := [token for token in bias if not 0 <= token < vocabulary]:
            raise HttpError(400, "invalid_value", f"the model has no token {unknown[0]}", "logit_bias")
        temperature, top_p = (1.0 if value is None else value for value in (self.temperature, self.top_p))
        return Sampling(temperature, top_p, self.seed, self.frequency_penalty or 0.0, self.presence_penalty or 0.0, bias)

    @property
    def drawn(self) -> int:
        """How many answers to each prompt are drawn."""
        return self.n

    @property
    def usage(self) -> bool:
        """Whether a stream ends with how many tokens there were."""
        return self.stream_options is not None and self.stream_options.include_usage


class Function(_Open):
    """What a tool is called with."""

    name: str = Field(min_length=1)
    description: str = ""
    strict: bool = False
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})


class Tool(_Open):
    """A function that the model may ask to be called."""

    type: Literal["function"]
    function: Function


class Name(_Open):
    """Of a function."""

    name: str


class Named(_Open):
    """The one function that is to be called."""

    type: Literal["function"]
    function: Name


class Allowed(_Open):
    """The functions that may be called, and whether one must be."""

    class _Tools(_Open):
        mode: Literal["auto", "required"]
        tools: Items[Named]

    type: Literal["allowed_tools"]
    allowed_tools: _Tools


class Call(_Open):
    """What is called, and with what."""

    name: str
    arguments: str


class Called(_Open):
    """A call that the model asked for."""

    id: str = ""
    type: Literal["function"] = "function"
    function: Call


class Part(_Open):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Refusal(_Open):
    """A part of a message that says why there is no answer."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """What it says."""
        return self.refusal


class Message(_Open):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Items[Part | Refusal] | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: Items[Called] | None = None
    tool_call_id: str | None = None
    function_call: Call | None = None

    @property
    def text(self) -> str:
        """What it says."""
        said = "".join(part.text for part in self.content) if isinstance(self.content, list) else self.content
        return said or self.refusal or ""

    @property
    def calls(self) -> list[Called]:
        """What it calls."""
        return self.tool_calls or ([Called(function=self.function_call)] if self.function_call else [])


class JsonSchema(_Open):
    """A schema that the answer must fit."""

    name: str = ""
    schema_: dict[str, Any] = Field(default_factory=lambda: {"type": "object"}, alias="schema")


class ResponseFormat(_Open):
    """What an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatBody(Body):
    """Of /v1/chat/completions."""

    messages: Items[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Items[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | Named | Allowed | None = None
    functions: Items[Function] | None = None
    function_call: Literal["none", "auto"] | Name | None = None
    response_format: ResponseFormat | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    modalities: list[Literal["text"]] | None = None
    prediction: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    safety_identifier: str | None = None

    @field_validator("top_logprobs")
    @classmethod
    def _told_with_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise PydanticCustomError("top_logprobs", "is told with `logprobs: true` only")
        return value


class CompletionBody(Body):
    """Of /v1/completions."""

    prompt: str | Items[int] | Items[str] | Items[Items[int]]
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False
    best_of: int | None = Field(None, ge=1)
    suffix: str | None = None

    @field_validator("suffix")
    @classmethod
    def _no_suffix(cls, value: str | None) -> None:
        if value:
            raise PydanticCustomError("suffix", "a model here writes what follows a prompt, nothing between it and a suffix; leave it out")

    @property
    def drawn(self) -> int:
        """See `Body`."""
        return self.best_of or self.n
