"""How many tokens per second a language model's endpoint answers with, beside transformers on the same weights.

    python benchmarks/generation.py FOLDER    a causal model of Hugging Face with a chat template, for example SmolLM2-135M-Instruct

All answers are greedy and have as many tokens; rounds are interleaved, and the median is printed. `--cpu` counts seconds of CPU time on one
thread, for machines that others use at the same time: the endpoint's include those of its clients, which are in the same process. `--chat`
times the first token of each turn of a conversation instead, which is sent whole each time, as clients do.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import openai
import torch
import uvicorn
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionMessageParam
from transformers import AutoModelForCausalLM, GenerationConfig

from lc_ray.artifact import Manifest
from lc_ray.models import load
from lc_ray.models.batches import TARGET, prepare
from lc_ray.predictor import Predictor
from lc_ray.quantizer import quantize
from lc_ray.serve.endpoint import Endpoint, Models, asgi
from lc_ray.serving import ServeSpec
from lc_ray.spec import InputSpec, ModelSpec, QuantizeSpec
from lc_ray.tasks.text_generation import Task

QUESTIONS = [
    "What is the capital of France?",
    "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
    "Explain why the sky is blue.",
    "List five things to pack for a week in the mountains in autumn, and say why each of them is needed.",
    "How do bees make honey?",
    "Give me a recipe for pancakes.",
    "Who was Marie Curie, and what is she known for? Answer in a few sentences, for a child of ten years.",
    "Name three rivers.",
]


CLOCK = time.perf_counter


def artifact(base: str, folder: Path, threads: int) -> Predictor:
    """The model as a job would leave it, without training."""
    inputs = [InputSpec(column="chat", modality="chat", base=base, max_length=1024)]
    columns, task = load.modalities(inputs), Task(labelled=False, max_new_tokens=32)
    model = load.pretrained(ModelSpec(), inputs, task.bind(columns))
    described = {"task": {"kind": "text_generation", **task.config}, "architecture": load.describe(model, {}, {})}
    manifest = Manifest(name="chat", inputs=[i.model_dump() for i in inputs], **described)
    return Predictor(load.save(folder / "chat", manifest, model.state_dict(), columns), threads)


def quantized(predictor: Predictor, folder: Path, threads: int) -> Predictor:
    """Its int8 form, calibrated on the questions: good enough for speed."""
    rows = prepare({"chat": [[{"role": "user", "content": question}] for question in QUESTIONS]}, predictor.columns)
    rows[TARGET] = [None] * len(QUESTIONS)
    spec = QuantizeSpec(kind="int8", calibration=len(QUESTIONS))
    return Predictor(quantize(predictor.artifact, spec, rows, folder / "int8", "chat"), threads)


def serve(predictor: Predictor) -> tuple[uvicorn.Server, str]:
    """An endpoint in this process."""
    spec = ServeSpec(timeout=600, batch={"max": 8})
    server = uvicorn.Server(uvicorn.Config(asgi(Models([Endpoint(predictor, spec)], spec), {}), port=0, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    return server, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"


async def ours(url: str, questions: list[str], tokens: int, end: int) -> float:
    """Seconds for concurrent requests over HTTP."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=600) as client:

        async def one(question: str) -> None:
            stream = await client.chat.completions.create(
                model="chat", messages=[{"role": "user", "content": question}], temperature=0, max_tokens=tokens,
                logit_bias={str(end): -100}, stream=True, stream_options={"include_usage": True},
            )  # fmt: skip
            async for chunk in stream:
                usage = chunk.usage
            assert usage is not None
            assert usage.completion_tokens == tokens

        start = CLOCK()
        await asyncio.gather(*(one(question) for question in questions))
        return CLOCK() - start


async def first(client: openai.AsyncOpenAI, messages: list[ChatCompletionMessageParam]) -> tuple[float, ChatCompletionMessageParam, CompletionUsage]:
    """Seconds until an answer's first token, the answer, and its tokens."""
    start, text, took, usage = CLOCK(), "", 0.0, None
    async for chunk in await client.chat.completions.create(
        model="chat", messages=messages, temperature=0, max_tokens=48, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage
        if chunk.choices and (piece := chunk.choices[0].delta.content):
            took, text = took or CLOCK() - start, text + piece
    assert usage is not None
    return took, {"role": "assistant", "content": text}, usage


async def converse(url: str, peer: Peer, rounds: int) -> None:
    """Print how long the first token of each turn takes: of a conversation that goes on, of one that was never heard, and of transformers."""
    seconds: dict[int, list[tuple[float, ...]]] = {}  # by turn: tokens of the prompt, and what each way took
    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=600) as client:
        for turn in range(rounds + 1):
            said: list[ChatCompletionMessageParam] = [{"role": "system", "content": f"Assistant {turn}, be brief and kind."}]
            for question in QUESTIONS:
                said.append({"role": "user", "content": question})
                other: ChatCompletionMessageParam = {"role": "system", "content": f"{turn}.{len(said)}: assistant, be brief and kind."}
                going_on, answer, usage = await first(client, said)
                anew, _, unheard = await first(client, [other, *said[1:]])
                assert unheard.prompt_tokens_details
                assert not unheard.prompt_tokens_details.cached_tokens
                if turn:  # the first is a warm-up
                    seconds.setdefault(len(said) // 2, []).append((usage.prompt_tokens, going_on, anew, peer.first(said)))
                said.append(answer)
    for number, taken in seconds.items():
        tokens, *ways = (statistics.median(column) for column in zip(*taken, strict=True))
        going_on, anew, theirs = (1e3 * way for way in ways)
        told = f"going on {going_on:.0f} ms, read anew {anew:.0f} ms, transformers {theirs:.0f} ms"
        print(f"turn {number}, {tokens:.0f} tokens: {told}", flush=True)


class Peer:
    """transformers itself.

    Args:
        base: the model's folder.
        predictor: whose tokenizer writes the same prompts.
        tokens: of each answer.
    """

    def __init__(self, base: str, predictor: Predictor, tokens: int) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        self.tokenizer, self.tokens = predictor.task.tokenizer, tokens
        self.tokenizer.padding_side = "left"

    def prompts(self, questions: list[str]) -> list[str]:
        """Conversations as the model reads them."""
        chats = [[{"role": "user", "content": question}] for question in questions]
        return [self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]

    def batch(self, questions: list[str]) -> float:
        """Seconds for one padded batch."""
        inputs = self.tokenizer(self.prompts(questions), return_tensors="pt", padding=True, add_special_tokens=False)
        start = CLOCK()
        with torch.inference_mode():
            self.model.generate(**inputs, do_sample=False, min_new_tokens=self.tokens, max_new_tokens=self.tokens)
        return CLOCK() - start

    def first(self, messages: Any) -> float:
        """Seconds until the first token of an answer."""
        start = CLOCK()
        inputs = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        with torch.inference_mode():
            self.model.generate(**inputs, do_sample=False, max_new_tokens=1)
        return CLOCK() - start

    def singly(self, questions: list[str]) -> float:
        """Seconds for one after another."""
        return sum(self.batch([question]) for question in questions)

    def continuous(self, questions: list[str]) -> float:
        """Seconds by its own continuous batching."""
        ids = [self.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in self.prompts(questions)]
        config = GenerationConfig(do_sample=False, max_new_tokens=self.tokens, eos_token_id=-1, pad_token_id=self.tokenizer.pad_token_id)
        start = CLOCK()
        found = self.model.generate_batch(inputs=ids, generation_config=config, progress_bar=False)
        assert all(len(answer.generated_tokens) == self.tokens for answer in found.values())
        return CLOCK() - start


def main() -> None:
    """Print tokens per second."""
    options = argparse.ArgumentParser()
    options.add_argument("base")
    options.add_argument("--tokens", type=int, default=64)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--continuous", action="store_true", help="time transformers' continuous batching too")
    options.add_argument("--int8", action="store_true", help="the endpoint's model in int8; transformers' stays fp32")
    options.add_argument("--chat", action="store_true", help="time the first token of each turn of a conversation instead")
    options.add_argument("--cpu", action="store_true", help="count CPU time, on one thread")
    chosen = options.parse_args()
    global CLOCK
    CLOCK = time.process_time if chosen.cpu else time.perf_counter
    threads = 1 if chosen.cpu else os.cpu_count() or 1
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        predictor = artifact(chosen.base, Path(folder), threads)
        if chosen.int8:
            predictor = quantized(predictor, Path(folder), threads)
        server, url = serve(predictor)
        peer = Peer(chosen.base, predictor, chosen.tokens)
        if chosen.chat:
            asyncio.run(converse(url, peer, chosen.rounds))
            server.should_exit = True
            return
        end = predictor.task.end[0]
        ways = {"transformers, one by one": peer.singly, "transformers, padded batch": peer.batch}
        if chosen.continuous:
            ways["transformers, generate_batch"] = peer.continuous
        ways["endpoint"] = lambda questions: asyncio.run(ours(url, questions, chosen.tokens, end))
        for rows in (1, 4, 8):
            questions = QUESTIONS[:rows]
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for turn in range(chosen.rounds + 1):
                for name, way in ways.items():
                    taken = way(questions)
                    if turn:  # the first is a warm-up
                        seconds[name].append(taken)
            unit = "tokens per CPU second" if chosen.cpu else "tokens/s"
            for name, taken in seconds.items():
                print(f"{rows} requests, {name}: {rows * chosen.tokens / statistics.median(taken):.1f} {unit}", flush=True)
        server.should_exit = True


if __name__ == "__main__":
    main()
