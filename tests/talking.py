"""What tests of language models share."""

import time

HELLO = [{"role": "user", "content": "Hello"}]
CITY = {"$defs": {"City": {"enum": ["Rome", "Oslo"]}}, "type": "object", "properties": {"city": {"$ref": "#/$defs/City"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {**CITY, "additionalProperties": False}}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}},
]


def tool(parameters):
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


def ask(client, messages=HELLO, **options):
    return client.chat.completions.create(model="talk", messages=messages, **{"seed": 1, "logit_bias": {"1": -100}} | options)


def coded(predictor, text):
    return predictor.task.tokenizer(text)["input_ids"]


async def collect(generator, ask, seconds=60):
    """Texts, tokens, after those of the prompt if they are told, and reasons for the end, by answer."""
    texts, tokens, finish = [""] * ask.n, [[] for _ in range(ask.n)], [None] * ask.n
    async for piece in generator.run([ask], time.monotonic() + seconds):
        texts[piece.number] += piece.text
        tokens[piece.number] += [*piece.prompt, *piece.tokens]
        finish[piece.number] = piece.finish
    return texts, tokens, finish
