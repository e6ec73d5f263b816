"""vLLM as the engine of language models, where it is installed and there is a GPU; else, and for what it can't load, ours.

It has its own scheduler and paged cache, in a process of its own. What an answer is stays ours: tokens come from there, and text, stop strings and
the end of an answer are made of them as always. Grammars are llguidance's on both sides.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import logging
import os
import tempfile
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import torch

from lc_ray.artifact import Artifact
from lc_ray.models.load import export
from lc_ray.predictor import Predictor
from lc_ray.serve.generation import Answer, Ask, Generator, Job, Prompt
from lc_ray.serve.own import OwnGenerator
from lc_ray.serving import ServeSpec
from lc_ray.tasks._sampling import LEAST, Token

_HOTTEST = 2.0  # vLLM refuses higher temperatures
_PAGE = 128  # positions in the largest page that its kernels have
# Fork would copy a process with threads; what is served and where is nobody else's business.
_ENVIRONMENT = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
_log = logging.getLogger(__name__)


def generator_of(predictor: Predictor, spec: ServeSpec) -> Generator:
    """The engine that answers for a language model: vLLM where it is installed, there is a GPU, and it can load the model; else ours."""
    if importlib.util.find_spec("vllm") is None:
        return OwnGenerator(predictor, spec)
    try:
        why = unsuited(predictor)
        if why is None:
            return VllmGenerator(predictor, spec)
    except Exception as error:  # of vLLM: it can't be imported, has no such architecture, not enough memory, ...
        why = str(error)
    _log.warning("%s is served without vLLM: %s", predictor.artifact.manifest.name, why)
    return OwnGenerator(predictor, spec)


def unsuited(predictor: Predictor) -> str | None:
    """Why vLLM, which is installed, is not to run a model here; None if it may."""
    manifest = predictor.artifact.manifest
    if manifest.engine != "none":
        return f"its weights are quantized for the engine {manifest.engine}"
    if manifest.architecture["shapes"]:
        return "it is pruned, to shapes that no Hugging Face configuration has"
    if predictor.task.temperature > _HOTTEST:
        return f"task.temperature is {predictor.task.temperature:g}, and vLLM's highest {_HOTTEST:g}"
    os.environ.update(_ENVIRONMENT | os.environ)
    from vllm.platforms import current_platform

    return None if torch.cuda.is_available() and current_platform.is_cuda_alike() else "there is no GPU that vLLM can use"


def folder_of(found: Artifact) -> Path:
    """A model as a Hugging Face folder, written once per version below `~/.cache/lc_ray/vllm`, or XDG_CACHE_HOME if that is set.

    It stays: vLLM finds by the folder's path what it has compiled for the model.

    Raises:
        ModelError: it has no such form.
        OSError: no room or no permission.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lc_ray" / "vllm"
    folder = cache / found.digest
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as partial:
            whole = export(found, Path(partial) / "model")
            with suppress(OSError):  # another replica was first
                os.replace(whole, folder)
    return folder


def parameters(ask: Ask, number: int, end: list[int]) -> dict[str, Any]:
    """Arguments of vLLM's `SamplingParams` for one answer, but for its grammar.

    Args:
        ask: what is wanted.
        number: of the answer among those to the prompt.
        end: the token that ends a text.
    """
    how, seed = ask.sampling, ask.sampling.seed_of(number)
    return {
        "temperature": how.temperature,
        "top_p": how.top_p,
        "seed": None if seed is None else seed % 2**63,  # vLLM keeps seeds in signed integers
        "frequency_penalty": how.frequency,
        "presence_penalty": how.presence,
        "logit_bias": how.bias or None,
        "max_tokens": max(ask.tokens, 1),  # fewer are refused
        "logprobs": ask.logprobs,
        "prompt_logprobs": ask.logprobs if ask.prompt_logprobs else None,
        "stop_token_ids": end,
        "ignore_eos": True,  # but for `end`, which the task says, not the model's files
        "detokenize": False,
    }


def token(number: int, found: Mapping[int, Any] | None, likeliest: int) -> Token:
    """A token that vLLM drew, or one of a prompt.

    Args:
        number: of the token.
        found: `Logprob`s by token: its own, and those of the likeliest; None if not asked for, and of a prompt's first.
        likeliest: how many of them are told.
    """
    if found is None:
        return Token(number)
    top = sorted((one.rank, other, max(one.logprob, LEAST)) for other, one in found.items() if one.rank <= likeliest)
    return Token(number, max(found[number].logprob, LEAST), tuple((other, logprob) for _, other, logprob in top))


class VllmGenerator(Generator):
    """Runs requests with vLLM, whose client lives on one thread with its own event loop.

    Args:
        predictor, spec: see `Generator`. `batch.tokens` is the size of vLLM's cache.
        dtype: of weights and cache, as vLLM calls it; "auto" is what the device has for fp32 weights, mostly bf16.

    Raises:
        ModelError, OSError: see `folder_of`.
        Exception: vLLM's own, where it can't run the model.
    """

    def __init__(self, predictor: Predictor, spec: ServeSpec, dtype: str = "auto") -> None:
        super().__init__(predictor, spec)
        self.positions = min(self.positions, spec.batch.tokens)  # a cache for the longest text that a model could read is more than many GPUs have
        self._jobs: dict[Job, Future[None]] = {}
        self._running = 0
        folder = folder_of(predictor.artifact)
        predictor.unload()  # our own engine: a GPU may not have room for both; where vLLM fails it is loaded again
        gc.collect()
        torch.cuda.empty_cache()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        try:
            self._engine = asyncio.run_coroutine_threadsafe(self._started(folder, dtype), self._loop).result()
        except BaseException:
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise

    @property
    def alive(self) -> bool:
        """See `Generator`."""
        return self._thread.is_alive() and not self._engine.errored

    @property
    def waiting(self) -> int:
        """See `Generator`. vLLM tells nothing of a request before its first token: as many as there is room for are taken to be begun."""
        return max(0, sum(not job.begun for job in list(self._jobs)) - (self.spec.batch.max - self._running))

    @property
    def running(self) -> int:
        """See `Generator`."""
        return self._running

    def submit(self, job: Job) -> None:
        """See `Generator`."""
        self._jobs[job] = asyncio.run_coroutine_threadsafe(self._work(job), self._loop)

    def drop(self, job: Job) -> None:
        """See `Generator`."""
        self._jobs.pop(job).cancel()

    def close(self) -> None:
        """See `Generator`. Takes seconds, for which nobody waits."""
        self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._engine.shutdown()
        self._loop.stop()

    async def _started(self, folder: Path, dtype: str) -> Any:
        """vLLM with a model of Hugging Face."""
        os.environ.update(_ENVIRONMENT | os.environ)
        from vllm.config import StructuredOutputsConfig
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        # The cache's size is given below. All that vLLM uses the share for then is a check that so much is free, in which a second model would fail.
        arguments = AsyncEngineArgs(
            model=str(folder),
            dtype=dtype,
            max_model_len=self.positions,
            max_num_seqs=self.spec.batch.max,
            gpu_memory_utilization=0.01,
            generation_config="vllm",
            structured_outputs_config=StructuredOutputsConfig(backend="guidance"),
        )
        config = arguments.create_engine_config()
        model, parallel = config.model_config, config.parallel_config
        width = model.get_num_layers(parallel) * model.get_num_kv_heads(parallel) * model.get_head_size()
        # Each answer's last page is partly empty, and vLLM keeps one for itself.
        positions = self.spec.batch.tokens + (self.spec.batch.max + 1) * _PAGE
        config.cache_config.kv_cache_memory_bytes = positions * width * 2 * model.dtype.itemsize  # keys and values
        return AsyncLLM.from_vllm_config(config)

    async def _work(self, job: Job) -> None:
        """Make a request's answers; the first error ends all of them."""
        try:
            async with asyncio.TaskGroup() as group:
                for prompt in job.prompts:
                    for number in range(prompt.ask.n):
                        group.create_task(self._answer(prompt, number))
        except ExceptionGroup as errors:
            job.send(errors.exceptions[0])

    async def _answer(self, prompt: Prompt, number: int) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        ask, answer = prompt.ask, Answer(prompt, number, self.tokenizer, self.end)
        grammar = StructuredOutputsParams(json=ask.matcher.schema) if ask.matcher else None
        how = SamplingParams(**parameters(ask, number, self.end), structured_outputs=grammar, output_kind=RequestOutputKind.DELTA)
        begun = False
        try:
            owner = {"cache_salt": prompt.job.key} if prompt.job.key else {}  # nobody learns what others have asked
            given = {"type": "token", "prompt_token_ids": ask.ids} | owner
            async with aclosing(self._engine.generate(given, how, uuid.uuid4().hex)) as outputs:
                async for output in outputs:
                    if not begun:
                        begun = True
                        self._running += 1
                        prompt.job.cached += 0 if number else output.num_cached_tokens or 0
                        prompt.job.begun = prompt.job.begun or output.metrics.scheduled_ts
                        if ask.prompt_logprobs:
                            prompt.told = [token(*one, ask.logprobs or 0) for one in zip(ask.ids, output.prompt_logprobs, strict=True)]
                        if answer.send(answer.begin()):
                            return
                    (new,) = output.outputs
                    for place, one in enumerate(new.token_ids):
                        if answer.send(answer.add(token(one, new.logprobs[place] if new.logprobs else None, ask.logprobs or 0))):
                            return
            raise RuntimeError(f"vLLM ended an answer after {answer.tokens} of {ask.tokens} tokens: {new.finish_reason}")
        finally:
            self._running -= begun
