"""/v1/completions: prompts that are repeated, with their tokens' probabilities, and the best of several answers."""

import asyncio
import time

import httpx
import openai
import pytest
import torch
from openai.types import completion_create_params as completion
from openai.types.chat import completion_create_params as chat
from talking import coded
from tokenizers import Tokenizer, decoders
from tokenizers import models as kinds
from tokens import byte_tokenizer
from transformers import PreTrainedTokenizerFast

from lc_ray.serve import record
from lc_ray.serve.generation import Ask, Piece
from lc_ray.serve.own import OwnGenerator
from lc_ray.serve.protocols._openai_answer import Completion
from lc_ray.serve.protocols._openai_body import ChatBody, CompletionBody
from lc_ray.serving import ServeSpec
from lc_ray.tasks._decoder import PART, Whole
from lc_ray.tasks._sampling import Sampling, Token

PROMPTS = ["a", "Hello there", "xyz" * 9, "the quick brown fox " * 29]
GREEDY = Sampling(temperature=0)


def logprobs(predictor, ids):
    """After each token, (tokens, vocabulary): of the model run on all of them at once."""
    whole = {"chat.input_ids": torch.tensor([ids]), "chat.attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
    return torch.from_numpy(predictor.engine(whole))[0].log_softmax(-1)


def complete(client, prompt, **options):
    return client.completions.create(model="talk", prompt=prompt, **{"seed": 1, "logit_bias": {"1": -100}} | options)


def probabilities(choice):
    return list(zip(choice.logprobs.tokens, choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True))


def decoder_of(predictor, whole):
    return Whole(lambda sequences, tokens: predictor.task._next(predictor.engine, sequences, tokens)) if whole else predictor.engine.decoder()


# The engine


@pytest.mark.parametrize("whole", [False, True])
def test_logits_after_every_token_are_given_in_parts(tiny_language, whole):
    decoder = decoder_of(tiny_language, whole)
    prompts = [decoder.begin(coded(tiny_language, text), every=i != 1) for i, text in enumerate([PROMPTS[3], "ab" * 20, "b", PROMPTS[2]])]
    found = {id(prompt): [] for prompt in prompts}
    while left := [prompt for prompt in prompts if prompt.done < len(prompt.ids)]:
        read = [(prompt, logits) for prompt, logits in zip(left, decoder.read(left), strict=True) if logits is not None]
        assert sum(len(logits) for _, logits in read) <= PART
        for prompt, logits in read:
            found[id(prompt)].append(logits)
    for prompt in prompts:
        expected = logprobs(tiny_language, prompt.ids)[0 if prompt.every else -1 :]
        torch.testing.assert_close(torch.cat(found[id(prompt)]).log_softmax(-1), expected, atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module", params=[False, True], ids=["cached", "whole"])
def generator(tiny_language, request):
    found = OwnGenerator(tiny_language, ServeSpec())
    found._decoder = decoder_of(tiny_language, request.param)
    yield found
    found.close()


@pytest.mark.parametrize("tokens", [3, 0])
def test_a_prompts_tokens_are_told_with_the_models_probabilities(tiny_language, generator, tokens):
    """Beside a prompt whose tokens are not, and again when all of them are kept."""
    asks = [Ask(coded(tiny_language, text), tokens, GREEDY, logprobs=2, prompt_logprobs=text != PROMPTS[1]) for text in PROMPTS]

    async def main():
        record.begin(seen := record.Record(key="me"))
        return [piece async for piece in generator.run(asks, time.monotonic() + 60)], seen

    for _ in range(2):
        pieces, seen = asyncio.run(main())
        assert seen.tokens_cached == 0
        assert seen.tokens_out == sum(piece.drawn for piece in pieces) <= tokens * len(asks)
        for number, ask in enumerate(asks):
            first, *more = own = [piece for piece in pieces if piece.number == number]
            assert [piece.finish is not None for piece in own] == [False] * (len(own) - 1) + [True]
            if not ask.prompt_logprobs:
                assert first.prompt == ()
                continue
            assert not any(piece.prompt for piece in more)
            assert [token.id for token in first.prompt] == ask.ids
            assert first.prompt[0] == Token(ask.ids[0])
            for token, row in zip(first.prompt[1:], logprobs(tiny_language, ask.ids), strict=False):
                assert token.logprob == pytest.approx(row[token.id].item(), abs=1e-3)
                assert [logprob for _, logprob in token.likeliest] == pytest.approx(row.topk(2).values.tolist(), abs=1e-3)


# The protocol


@pytest.mark.parametrize("bias", [{"1": -100}, {"1": 100}], ids=["goes on", "ends"])
def test_an_evaluation_reads_how_likely_a_continuation_is(client, tiny_language, bias):
    """As EleutherAI's harness does it: of several prompts at once, all tokens behind the context but the last, which is drawn, ended text or not."""
    rows = [(coded(tiny_language, "Is the sky "), coded(tiny_language, end)) for end in ("blue?", "a")]
    rows.append((rows[0][0], logprobs(tiny_language, rows[0][0])[-1:].argmax(-1).tolist()))
    found = complete(client, [a + b for a, b in rows], echo=True, max_tokens=1, logprobs=1, temperature=0, logit_bias=bias)
    for (context, end), choice in zip(rows, sorted(found.choices, key=lambda choice: choice.index), strict=True):
        told, top = (one[len(context) : -1] for one in (choice.logprobs.token_logprobs, choice.logprobs.top_logprobs))
        expected = logprobs(tiny_language, context + end)[len(context) - 1 : -1]
        assert sum(told) == pytest.approx(sum(row[one].item() for one, row in zip(end, expected, strict=True)), abs=1e-3)
        likeliest = all(one == max(some.values()) for one, some in zip(told, top, strict=True))
        assert likeliest == (expected.argmax(-1).tolist() == end)
    assert likeliest


def test_a_prompts_probabilities_alone(client, tiny_language):
    found = complete(client, ["Hello", "Why?"], echo=True, max_tokens=0, logprobs=0)
    assert [(choice.text, choice.finish_reason) for choice in found.choices] == [("Hello", "length"), ("Why?", "length")]
    first = found.choices[0].logprobs
    expected = logprobs(tiny_language, ids := coded(tiny_language, "Hello"))
    assert first.token_logprobs[0] is first.top_logprobs[0] is None
    assert first.token_logprobs[1:] == pytest.approx([row[one].item() for one, row in zip(ids[1:], expected, strict=False)], abs=1e-3)
    assert first.top_logprobs[1:] == [{token: one} for token, one in zip("ello", first.token_logprobs[1:], strict=True)]
    assert (first.tokens, first.text_offset) == (list("Hello"), [0, 1, 2, 3, 4])
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (9, 0)
    longest = complete(client, "x" * 640, echo=True, max_tokens=0, logprobs=0).choices[0]
    assert len(longest.logprobs.tokens) == 640
    parts = complete(client, "Hello €uro", echo=True, max_tokens=0, logprobs=0).choices[0]
    assert len(parts.logprobs.tokens) == len("Hello €uro".encode())
    assert parts.logprobs.text_offset == [0, 1, 2, 3, 4, 5, 6, 6, 6, 7, 8, 9]


@pytest.mark.parametrize("logprobs", [None, 2])
def test_a_stream_repeats_the_prompt_once(client, logprobs):
    options = {"echo": True, "max_tokens": 9, "n": 2, "logprobs": logprobs}
    whole = complete(client, ["Is it?", "No."], **options)
    texts, told = [""] * 4, [[] for _ in range(4)]
    for chunk in complete(client, ["Is it?", "No."], stream=True, **options):
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        told[choice.index] += probabilities(choice) if logprobs else []
    assert texts == [choice.text for choice in whole.choices]
    assert [text.startswith("Is it?") for text in texts] == [True, True, False, False]
    assert complete(client, [[ord(c) for c in "ab"]], echo=True, max_tokens=0).choices[0].text == byte_tokenizer("").decode([ord(c) for c in "ab"])
    if logprobs:
        assert told == [probabilities(choice) for choice in whole.choices]
        assert len(told[0]) == 6 + 9
    plain = complete(client, "Is it?", max_tokens=9, n=2)
    assert texts[:2] == ["Is it?" + choice.text for choice in plain.choices]
    for stream in complete(client, "Is it?", echo=True, max_tokens=0, stream=True):
        assert (stream.choices[0].text, stream.choices[0].finish_reason) == ("Is it?", "length")


def test_places_of_tokens_are_those_in_the_text():
    """Even where a tokenizer begins a prompt with a token of its own."""
    words = Tokenizer(kinds.WordLevel({word: i for i, word in enumerate(["x", "▁The", "▁cat", "▁sat", "!", "<s>"])}, unk_token="<s>"))
    words.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    answers = Completion("m", "1", PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>"), logprobs=True, echo=["The cat"])
    answers.begin("x", 0, [Ask([5, 1, 2], 2, logprobs=0, prompt_logprobs=True, continues=True)])
    answers.take(Piece(0, "", (), prompt=(Token(5), Token(1, -1.0), Token(2, -1.0))))
    answers.take(Piece(0, " sat!", (Token(3, -1.0), Token(4, -1.0)), "stop"))
    (choice,) = answers.whole()["choices"]
    assert choice["text"] == "The cat sat!"
    assert choice["logprobs"]["text_offset"] == [0, 0, 3, 7, 11]


def test_the_best_of_several_answers(client):
    drawn = complete(client, ["one", "two"], n=4, max_tokens=5, logprobs=0)
    found = complete(client, ["one", "two"], n=2, best_of=4, max_tokens=5)
    expected = []
    for first in (0, 4):
        some = sorted(drawn.choices[first : first + 4], key=lambda choice: -sum(choice.logprobs.token_logprobs) / 5)
        expected += [choice.text for choice in some[:2]]
    assert [choice.text for choice in found.choices] == expected
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert all(choice.logprobs is None for choice in found.choices)
    assert found.usage.completion_tokens == drawn.usage.completion_tokens == 40
    assert len(complete(client, "one", n=2, best_of=2, max_tokens=5, stream=True).response.read().split(b"data: ")) > 3


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"n": 2, "best_of": 1}, "best_of", "at least n, which is 2"),
        ({"best_of": 2, "stream": True}, "best_of", "no more for a stream"),
        ({"best_of": 5}, "best_of", "4 answers"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"prompt": [[999]], "echo": True}, "prompt", "no token 999"),
        ({"prompt": "x" * 641, "echo": True, "max_tokens": 0}, "prompt", "reads 640 tokens"),
        ({"prompt": "x" * 640, "echo": True}, "prompt", "reads 640 tokens"),
        ({"prompt": "x" * 50_000}, "prompt", "more than twice as many"),
        ({"prompt": ["x" * 600] * 20, "n": 4, "echo": True, "max_tokens": 0, "logprobs": 5}, "prompt", "fewer prompts at a time"),
        ({"suffix": "x"}, "suffix", "nothing between it and a suffix"),
    ],
)
def test_mistakes_of_completions(client, options, param, message):
    with pytest.raises(openai.BadRequestError, match=message) as found:
        complete(client, **{"prompt": "Hello"} | options)
    assert found.value.param == param


@pytest.mark.parametrize(
    ("options", "body", "others"), [(chat, ChatBody, {"web_search_options", "audio", "moderation"}), (completion, CompletionBody, set())]
)
def test_all_options_of_openais_client_are_known_but_those_whose_effect_would_be_missed(options, body, others):
    assert options.CompletionCreateParamsBase.__annotations__.keys() - body.model_fields.keys() <= others


def test_of_a_million_mistakes_one_is_told(url):
    body = {"model": "talk", "prompt": [{}] * 1_000_000}
    start = time.monotonic()
    response = httpx.post(f"{url}/v1/completions", json=body, headers={"authorization": "Bearer secret"}, timeout=30)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("prompt")
    assert time.monotonic() - start < 10
