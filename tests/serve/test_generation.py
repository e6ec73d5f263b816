"""Answers token by token, beside transformers' own."""

import asyncio
import time

import pytest
import torch
from talking import coded, collect
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from lc_ray.models.prefixes import LEAST, Prefixes
from lc_ray.serve import record
from lc_ray.serve.batching import QueueFull
from lc_ray.serve.generation import Ask, Piece
from lc_ray.serve.own import OwnGenerator
from lc_ray.serve.protocols._openai_answer import Completion
from lc_ray.serve.spelling import Spelling
from lc_ray.serving import ServeSpec
from lc_ray.tasks._decoder import Whole
from lc_ray.tasks._sampling import Sampler, Sampling, Token, _nucleus

GREEDY = Sampling(temperature=0)
PROMPTS = ["a", "Hello there", "the quick brown fox " * 20, "xyz" * 9, "0123456789" * 5]


@pytest.fixture(scope="module")
def make(tiny_language):
    """make(...) → a generator with these limits."""
    made = []

    def make(whole=False, **limits):
        found = OwnGenerator(tiny_language, ServeSpec(**limits))
        if whole:
            found._decoder = Whole(lambda sequences, tokens: tiny_language.task._next(tiny_language.engine, sequences, tokens))
        made.append(found)
        return found

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def plain(tiny_language):
    """transformers' model of the same weights."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(tiny_language.engine.model.model.config).eval()
    model.load_state_dict(tiny_language.engine.model.model.state_dict())
    return model


async def settled(generator):
    while generator.running or generator._reading or generator._waiting:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_greedy_is_transformers_own_in_any_batch(tiny_language, plain, make, whole, rows):
    lengths = [12, 5, 20, 1, 9]
    expected = []
    for text, length in zip(PROMPTS, lengths, strict=True):
        ids = torch.tensor([coded(tiny_language, text)])
        found = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False)[0, ids.shape[1] :].tolist()
        expected.append([token for token in found if token != 1])
    generator = make(whole, batch={"max": rows})

    async def main():
        async def late(i):
            await asyncio.sleep(0.005 * i)
            return await collect(generator, Ask(coded(tiny_language, PROMPTS[i]), lengths[i], GREEDY))

        return await asyncio.gather(*(late(i) for i in range(len(PROMPTS))))

    assert [[token.id for token in tokens[0]] for _, tokens, _ in asyncio.run(main())] == expected
    assert len({tuple(one) for one in expected}) == len(expected), "all the same would show nothing"


def test_short_prompts_are_read_together_and_long_ones_in_parts(tiny_language, plain):
    prompts = [coded(tiny_language, "ab" * n) for n in (20, 3, 200, 60, 1)]
    with torch.no_grad():
        expected = [plain(torch.tensor([ids])).logits[0, -1] for ids in prompts]
    decoder = tiny_language.engine.decoder()
    waiting, found, order = list(enumerate(map(decoder.begin, prompts))), {}, []
    while waiting:
        read = decoder.read([prompt for _, prompt in waiting])
        order.append([i for (i, _), logits in zip(waiting, read, strict=True) if logits is not None])
        for (i, prompt), logits in zip(waiting, read, strict=True):
            if logits is not None:
                found[i] = logits[-1]
                decoder.join(prompt)
        waiting = [one for one in waiting if one[0] not in found]
    assert order == [[0, 1, 4], [], [2], [3]], "3 × 40 tokens, 400 in two parts, then 120"
    for i, logits in enumerate(expected):
        torch.testing.assert_close(found[i], logits, atol=1e-3, rtol=1e-3)
    ran = [i for some in order for i in some]
    with torch.no_grad():
        after = torch.stack([plain(torch.tensor([[*prompts[i], 65]])).logits[0, -1] for i in ran])
    torch.testing.assert_close(decoder.step([65] * 5), after, atol=1e-3, rtol=1e-3)


def greedy(model, ids, tokens):
    found = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64), max_new_tokens=tokens, do_sample=False)
    return found[0, len(ids) :].tolist()


@pytest.mark.parametrize("whole", [False, True])
def test_what_was_read_before_is_not_read_again(tiny_language, plain, make, whole):
    """A conversation whose turns are each sent with all before; another that parts from it; and the same again."""
    generator, ids = make(whole), coded(tiny_language, "Hello there, who are you? " * 4)
    begun, read = [], []

    async def turn(ids, key=""):
        begun.append(record.Record(key=key))
        record.begin(begun[-1])
        return [token.id for token in (await collect(generator, Ask(ids, 9, Sampling(temperature=0, bias={1: -100}))))[1][0]]

    extend = getattr(generator._decoder, "_extend", None)
    if extend:
        generator._decoder._extend = lambda ids, *rest, **more: (read.append(ids.numel()), extend(ids, *rest, **more))[1]
    expected = plain.generation_config.suppress_tokens
    plain.generation_config.suppress_tokens = [1]
    turns = [ids]
    for _ in range(2):
        turns.append([*turns[-1], *greedy(plain, turns[-1], 9), *coded(tiny_language, "And then?")])
    turns += [[*ids, *coded(tiny_language, "or else")], ids]
    for one in turns:
        assert asyncio.run(turn(one)) == greedy(plain, one, 9)
    plain.generation_config.suppress_tokens = expected
    cached = [0, len(turns[0]) + 8, len(turns[1]) + 8, len(ids), len(ids) - 1]
    assert [seen.tokens_cached for seen in begun] == ([0] * 5 if whole else cached)
    if extend:
        assert sum(read) == sum(map(len, turns)) - sum(cached) + 5 * 8
    asyncio.run(turn(ids, key="another"))
    assert begun[-1].tokens_cached == 0, "nobody learns what others have asked"


def test_what_is_kept_has_a_size():
    def held(tokens):
        return [(torch.full((1, 2, tokens, 4), tokens), torch.full((1, 2, tokens, 4), -tokens))]

    kept, (one, two, other) = Prefixes(), ([1] * 100, [2] * 100, [3] * 100)
    kept.limit(250)
    assert not kept.wants(LEAST - 1)
    assert kept.wants(250)
    assert not kept.wants(251)
    for ids in (one, two):
        kept.add("me", ids, held(100))
    assert kept.find("me", [*one[:70], 9])[1] == 70
    assert kept.find("others", [*one[:70], 9])[1] == 0
    kept.add("me", other, held(100))
    assert [kept.find("me", [*ids, 9])[1] for ids in (one, two, other)] == [100, 0, 100], "the last used stay"
    kept.add("me", [*one, 8], held(101))
    assert kept.find("me", [*one, 8, 9])[1] == 101
    assert kept.find("me", [*other, 9])[1] == 100, "and what begins another is in it"
    cache, shared = kept.find("me", one)
    assert (shared, cache.layers[0].keys.shape, float(cache.layers[0].values[0, 0, -1, 0])) == (99, (1, 2, 99, 4), -101.0)
    assert kept.find("me", one[: LEAST - 1])[1] == 0
    kept.limit(120)
    assert [kept.find("me", [*ids, 9])[1] for ids in (one, other)] == [100, 0]


def test_running_answers_take_the_room_of_those_that_ended(tiny_language, make):
    generator, ids = make(batch={"tokens": 1200}), coded(tiny_language, "a" * 150)

    async def main():
        await collect(generator, Ask(ids, 20))
        before = generator._decoder._ended.room
        async for _ in generator.run([Ask(coded(tiny_language, "b" * 200), 200, Sampling(seed=0, bias={1: -100}), n=2)], time.monotonic() + 60):
            during = generator._decoder._ended.room
        return before, during

    before, during = asyncio.run(main())
    assert before == 1200 // 4
    assert during < 1200 - 2 * 400 + 2


def test_a_request_may_have_many_prompts(tiny_language, make):
    """More than run at a time; each has the answers that it has alone."""
    generator = make(batch={"max": 2})
    asks = [Ask(coded(tiny_language, text), 6, Sampling(seed=2), n=1 + (i == 1)) for i, text in enumerate(PROMPTS)]

    async def main():
        texts, most = [""] * 6, 0
        async for piece in generator.run(asks, time.monotonic() + 60):
            texts[piece.number] += piece.text
            most = max(most, generator.running)
        return texts, most, [text for ask in asks for text in (await collect(generator, ask))[0]]

    texts, most, alone = asyncio.run(main())
    assert texts == alone
    assert most == 2


def test_a_seed_draws_the_same_in_any_company(tiny_language, make):
    generator = make()
    ask = Ask(coded(tiny_language, "Hello"), 24, Sampling(1.0, 0.9, seed=5), n=2)

    async def main():
        alone = await collect(generator, ask)
        others = [collect(generator, Ask(coded(tiny_language, text), 30)) for text in PROMPTS]
        (among, *_) = await asyncio.gather(collect(generator, ask), *others)
        other = await collect(generator, Ask(ask.ids, 24, Sampling(1.0, 0.9, seed=6)))
        return alone, among, other

    alone, among, other = asyncio.run(main())
    assert alone == among
    assert alone[0][0] != alone[0][1], "the answers to one request differ"
    assert other[0][0] not in alone[0]


def test_what_is_drawn_has_the_models_distribution():
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0])
    for sampling in (Sampling(seed=0), Sampling(0.5, seed=0), Sampling(1.0, 0.8, seed=0)):
        sampler = Sampler(sampling, 0, None)
        counts = torch.bincount(torch.tensor([sampler.draw(logits).id for _ in range(4000)]), minlength=4) / 4000
        wanted = (logits / sampling.temperature).softmax(-1)
        if sampling.top_p < 1:
            wanted = torch.where(torch.tensor([False, True, True, False]), wanted, 0)
        torch.testing.assert_close(counts, wanted / wanted.sum(), atol=0.03, rtol=0)


def test_the_nucleus_is_the_smallest_that_has_enough():
    flat = torch.full((1000,), 0.001, dtype=torch.float64)
    assert len(_nucleus(flat, 0.5)[0]) in (500, 501)
    assert _nucleus(torch.tensor([0.1, 0.6, 0.3]), 0.6)[1].tolist() == [1]
    assert _nucleus(torch.tensor([0.1, 0.6, 0.3]), 0.7)[1].tolist() == [1, 2]


@pytest.mark.parametrize("temperature", [1e-8, 1e-45, 1e-320])
@pytest.mark.parametrize("top_p", [1.0, 0.5, 1e-300])
def test_hardly_any_temperature_takes_the_likeliest(temperature, top_p):
    logits, allowed = torch.tensor([1.0, 0.9, 3.0, 0.1]), torch.tensor([True, True, False, True])
    for seed in range(5):
        sampler = Sampler(Sampling(temperature, top_p, seed), 0, None)
        assert [sampler.draw(logits).id, sampler.draw(logits, allowed).id] == [2, 0]


def test_penalties_and_biases():
    logits = torch.tensor([1.0, 0.9, 0.1])
    sampler = Sampler(Sampling(0, presence=0.5), 0, None)
    assert [sampler.draw(logits).id for _ in range(3)] == [0, 1, 0]
    sampler = Sampler(Sampling(0, frequency=0.5), 0, None)
    assert [sampler.draw(logits).id for _ in range(5)] == [0, 1, 0, 1, 2]
    assert Sampler(Sampling(0, bias={2: 5.0}), 0, None).draw(logits).id == 2
    assert Sampler(Sampling(), 0, None).draw(logits, torch.tensor([False, False, True])).id == 2


def test_logprobs_are_the_models(tiny_language, plain, make):
    ids = coded(tiny_language, "Hello")
    _, (tokens,), _ = asyncio.run(collect(make(), Ask(ids, 8, Sampling(2.0, seed=3), logprobs=3)))
    said = [token.id for token in tokens]
    with torch.no_grad():
        logits = plain(torch.tensor([ids + said])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    for token, row in zip(tokens, logits, strict=True):
        assert token.logprob == pytest.approx(row[token.id].item(), abs=1e-3)
        top = row.topk(3)
        assert [one for one, _ in token.likeliest] == top.indices.tolist()
        assert [logprob for _, logprob in token.likeliest] == pytest.approx(top.values.tolist(), abs=1e-3)


def spelled(tiny_language, text, stop=()):
    spelling = Spelling(tiny_language.task.tokenizer, stop)
    pieces = []
    for token in coded(tiny_language, text):
        spelling.add(token)
        pieces.append(spelling.take())
        if spelling.stopped:
            break
    return [*pieces, spelling.take(whole=True)], spelling.stopped


def test_characters_are_given_whole(tiny_language):
    pieces, _ = spelled(tiny_language, "aé€🙂b")
    assert [piece for piece in pieces if piece] == ["a", "é", "€", "🙂", "b"]
    tokens = coded(tiny_language, "🙂")[:2]
    spelling = Spelling(tiny_language.task.tokenizer)
    for token in tokens:
        spelling.add(token)
    assert spelling.take() == ""
    assert spelling.take(whole=True).startswith("\N{REPLACEMENT CHARACTER}")


@pytest.fixture(scope="module")
def pieces():
    """A tokenizer like those of SentencePiece: a text loses the space that its first token begins with."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["x", "▁The", "▁cat", "▁sat", "!", "<unk>"])}, unk_token="<unk>"))
    words.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")


@pytest.mark.parametrize(("before", "text"), [((), "sat!"), ((1, 2), " sat!")])
def test_a_continuation_keeps_its_first_space(pieces, before, text):
    spelling = Spelling(pieces, before=before)
    for token in (3, 4):
        spelling.add(token)
    assert spelling.take(whole=True) == text


def test_tokens_are_told_with_their_spaces(pieces):
    answers = Completion("m", "1", pieces, logprobs=True)
    answers.begin("x", 0, [Ask([1, 2], 2, logprobs=1, continues=True)])
    (chunk,) = answers.chunks(Piece(0, " sat!", tuple(Token(one, -1.0, ((2, -2.0),)) for one in (3, 4)), "stop"))
    told = chunk["choices"][0]["logprobs"]
    assert (told["tokens"], told["text_offset"]) == ([" sat", "!"], [0, 4])
    assert told["top_logprobs"] == [{" cat": -2.0, " sat": -1.0}, {" cat": -2.0, "!": -1.0}]


def test_stop_strings_across_tokens(tiny_language):
    pieces, stopped = spelled(tiny_language, "say hello STOP and more", ["STOP"])
    assert ("".join(pieces), stopped) == ("say hello ", True)
    pieces, stopped = spelled(tiny_language, "SSTO is no end", ["STOP", "€"])
    assert ("".join(pieces), stopped) == ("SSTO is no end", False)
    assert pieces[:5] == ["", "S", "", "", "STO "], "what may begin a stop string is held back"
    pieces, _ = spelled(tiny_language, "one € two", ["€", "two"])
    assert "".join(pieces) == "one "


def test_an_answer_ends_where_a_stop_string_begins(tiny_language, make):
    ids, generator = coded(tiny_language, "Hello"), make()
    (text,), _, (finish,) = asyncio.run(collect(generator, Ask(ids, 24, Sampling(seed=1))))
    assert finish == "length"
    stop = text[9:12]
    (cut,), _, (finish,) = asyncio.run(collect(generator, Ask(ids, 24, Sampling(seed=1), stop=(stop,))))
    assert (cut, finish) == (text[: text.index(stop)], "stop")


def test_who_hangs_up_frees_the_place_at_the_next_token(tiny_language, make):
    generator = make(batch={"max": 1})

    async def main():
        long = generator.run([Ask(coded(tiny_language, "a"), 600, Sampling(seed=0, bias={1: -100}))], time.monotonic() + 60)
        await anext(long)
        waiting = asyncio.ensure_future(collect(generator, Ask(coded(tiny_language, "b"), 4, GREEDY)))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await long.aclose()
        start = time.monotonic()
        await waiting
        await settled(generator)
        return time.monotonic() - start

    assert asyncio.run(main()) < 2


def test_limits(tiny_language, make):
    ids, endless = coded(tiny_language, "a"), Sampling(seed=0, bias={1: -100})
    generator = make(batch={"max": 1}, queue=1)

    async def main():
        first = generator.run([Ask(ids, 600, endless)], time.monotonic() + 60)
        await anext(first)
        second = asyncio.ensure_future(collect(generator, Ask(ids, 4, endless), seconds=0.1))
        await asyncio.sleep(0.02)
        with pytest.raises(QueueFull):
            await collect(generator, Ask(ids, 4, endless))
        with pytest.raises(TimeoutError):
            await second
        await first.aclose()
        await settled(generator)
        return await collect(generator, Ask(ids, 4, endless))

    assert asyncio.run(main())[2] == ["length"]


def test_the_cache_has_a_size(tiny_language, make):
    """Answers that would need more positions together than `batch.tokens` wait for one another."""
    generator, most = make(batch={"tokens": 640}), 0

    async def one():
        nonlocal most
        async for _ in generator.run([Ask(coded(tiny_language, "a" * 250), 40, Sampling(seed=0, bias={1: -100}))], time.monotonic() + 60):
            most = max(most, generator.running)

    async def main():
        await asyncio.gather(*(one() for _ in range(4)))

    asyncio.run(main())
    assert most == 2


def test_a_failing_engine_fails_what_runs_and_nothing_else(tiny_language, make):
    generator = make()

    def broken(tokens):
        raise RuntimeError("out of memory")

    async def main():
        generator._decoder.step = broken
        with pytest.raises(RuntimeError, match="out of memory"):
            await collect(generator, Ask(coded(tiny_language, "a"), 8, Sampling(seed=0, bias={1: -100})))
        return await collect(generator, Ask(coded(tiny_language, "a"), 8, Sampling(seed=0, bias={1: -100})))

    assert asyncio.run(main())[2] == ["length"]
    assert generator.alive
