"""What tests of language models' engines share."""

import time


def coded(predictor, text):
    return predictor.task.tokenizer(text)["input_ids"]


async def collect(generator, ask, seconds=60):
    """Texts, tokens and reasons for the end, by answer."""
    texts, tokens, finish = [""] * ask.n, [[] for _ in range(ask.n)], [None] * ask.n
    async for piece in generator.run([ask], time.monotonic() + seconds):
        texts[piece.number] += piece.text
        tokens[piece.number] += piece.tokens
        finish[piece.number] = piece.finish
    return texts, tokens, finish
