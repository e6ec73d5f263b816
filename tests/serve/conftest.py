"""What tests of the endpoint share."""

from __future__ import annotations

import io
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import LABELS
from tokens import byte_tokenizer

TEMPLATE = """{% if tools %}<user>{{ tools | tojson }} <tool_call><end>{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}\
{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<end>
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""


@pytest.fixture(scope="session")
def predictor(tiny_artifact: Path) -> Any:
    """One column, "text"."""
    import lc_ray

    return lc_ray.load(tiny_artifact, threads=1)


@pytest.fixture(scope="session")
def fused(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An untrained model of a text, a photo, a sound and a price, of which a row may lack any."""
    import torch
    from artifacts import save
    from transformers import ViTConfig, ViTModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    import lc_ray
    from lc_ray.models import load
    from lc_ray.spec import InputSpec, ModelSpec
    from lc_ray.tasks.classification import Task

    torch.manual_seed(0)
    vit, speech = tmp_path_factory.mktemp("vit"), tmp_path_factory.mktemp("wav2vec2")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**shape, image_size=32, patch_size=16), add_pooling_layer=False).save_pretrained(vit)
    conv = {"conv_dim": (16, 16, 16), "conv_kernel": (10, 8, 4), "conv_stride": (5, 8, 4), "num_conv_pos_embedding_groups": 2}
    layers = {"num_feat_extract_layers": 3, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "num_conv_pos_embeddings": 16}
    Wav2Vec2Model(Wav2Vec2Config(**shape, **conv, **layers)).save_pretrained(speech)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(speech)
    inputs = [
        InputSpec(column="text", base=str(tiny_base), max_length=32, optional=True),
        InputSpec(column="photo", modality="image", base=str(vit), size=32, optional=True),
        InputSpec(column="sound", modality="audio", base=str(speech), seconds=1, optional=True),
        InputSpec(column="price", modality="tabular", optional=True),
    ]
    task = Task(LABELS)
    model = load.pretrained(ModelSpec(), inputs, task)
    return lc_ray.load(save(tmp_path_factory.mktemp("artifacts") / "fused", model, task, inputs).path, threads=1)


@pytest.fixture(scope="session")
def png() -> bytes:
    """A picture."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.arange(40 * 30 * 3, dtype=np.uint8).reshape(30, 40, 3)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def wav() -> bytes:
    """A sound."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, 0.5 * np.sin(np.arange(8000) / 6), 16_000, format="WAV")
    return file.getvalue()


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A certificate of this machine and of images.example.com, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    files = {"certificate": str(folder / "cert.pem"), "key": str(folder / "key.pem")}
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost -addext"
    names = "subjectAltName=IP:127.0.0.1,DNS:images.example.com"
    subprocess.run([*make.split(), names, "-keyout", files["key"], "-out", files["certificate"]], check=True, capture_output=True)
    return files


@pytest.fixture(scope="session")
def endpoint() -> Iterator[Callable[..., Any]]:
    """endpoint(predictor, ...limits of ServeSpec) → a warm Endpoint, the same for the same arguments."""
    from lc_ray.serve.endpoint import Endpoint
    from lc_ray.serving import ServeSpec

    made: dict[tuple[str, str], Any] = {}

    def make(predictor: Any, **limits: Any) -> Any:
        spec = ServeSpec(**limits)
        name = (predictor.artifact.digest, spec.model_dump_json())
        if name not in made:
            made[name] = Endpoint(predictor, spec)
        return made[name]

    yield make
    for one in made.values():
        one.close()


@pytest.fixture(scope="session")
def language(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """language(...of LlamaConfig) → a predictor of a random Llama of 2 layers that reads 640 tokens, and answers with up to 16."""

    def make(**shape: Any) -> Any:
        import torch
        from artifacts import save
        from transformers import LlamaConfig, LlamaForCausalLM

        from lc_ray.models import load
        from lc_ray.predictor import Predictor
        from lc_ray.spec import InputSpec, ModelSpec
        from lc_ray.tasks.text_generation import Task

        torch.manual_seed(0)
        base = tmp_path_factory.mktemp("base")
        shape = {"num_hidden_layers": 2, "initializer_range": 0.3, "max_position_embeddings": 640, "vocab_size": 260} | shape
        LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=1, eos_token_id=1, pad_token_id=0)).save_pretrained(base)
        byte_tokenizer(TEMPLATE).save_pretrained(base)
        inputs = [InputSpec(column="chat", modality="chat", base=str(base), max_length=600)]
        task = Task(labelled=False, max_new_tokens=16).bind(load.modalities(inputs))
        return Predictor(save(tmp_path_factory.mktemp("language") / "talk", load.pretrained(ModelSpec(), inputs, task), task, inputs), 1)

    return make


@pytest.fixture(scope="session")
def tiny_language(language: Callable[..., Any]) -> Any:
    """See `language`."""
    return language(hidden_size=48, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture(scope="module")
def endpoints(tiny_language: Any, predictor: Any) -> Iterator[list[Any]]:
    """A language model, "talk", and "tiny"."""
    from lc_ray.serve.endpoint import Endpoint
    from lc_ray.serving import ServeSpec

    spec = ServeSpec(batch={"max": 4}, timeout="60s")
    found = [Endpoint(one, spec) for one in (tiny_language, predictor)]
    yield found
    for one in found:
        one.close()


@pytest.fixture(scope="module")
def url(endpoints: list[Any]) -> Iterator[str]:
    """Of a server of `endpoints`, whose key is "secret"."""
    import uvicorn

    from lc_ray.serve import auth
    from lc_ray.serve.endpoint import Models, asgi

    app = asgi(Models(endpoints, endpoints[0].spec), {auth.digest("secret"): "test"})
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    """OpenAI's own, of `url`."""
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
        yield client


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where endpoints keep their state."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def addresses() -> Iterator[list[str]]:
    """Of two Rays that run."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        yield [f"127.0.0.1:{server.getsockname()[1]}" for server in (one, two)]
