"""A tiny language model as an artifact."""

from __future__ import annotations

from typing import Any

import pytest

TEMPLATE = """{% if tools %}<user>{{ tools | tojson }} <tool_call><end>{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}\
{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<end>
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""


def tokenizer() -> Any:
    """One token per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE({token: i for i, token in enumerate(["<pad>", "<end>", "<user>", "<assistant>", *letters])}, []))
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    specials = {"pad_token": "<pad>", "eos_token": "<end>", "additional_special_tokens": ["<user>", "<assistant>"]}
    return PreTrainedTokenizerFast(tokenizer_object=bare, chat_template=TEMPLATE, **specials)


@pytest.fixture(scope="session")
def tiny_language(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A predictor of a random Llama of 2 layers that reads 640 tokens, and answers with up to 16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lc_ray.artifact import Manifest
    from lc_ray.models import load
    from lc_ray.predictor import Predictor
    from lc_ray.spec import InputSpec, ModelSpec
    from lc_ray.tasks.text_generation import Task

    torch.manual_seed(0)
    base = tmp_path_factory.mktemp("tiny_language")
    config = LlamaConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
        max_position_embeddings=640, vocab_size=260, bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(base)
    tokenizer().save_pretrained(base)
    inputs = [InputSpec(column="chat", modality="chat", base=str(base), max_length=600)]
    columns, task = load.modalities(inputs), Task(labelled=False, max_new_tokens=16)
    model = load.pretrained(ModelSpec(), inputs, task.bind(columns))
    manifest = Manifest(
        name="talk",
        task={"kind": "text_generation", **task.config},
        inputs=[i.model_dump() for i in inputs],
        architecture=load.describe(model, {}, {}),
    )
    return Predictor(load.save(tmp_path_factory.mktemp("language") / "talk", manifest, model.state_dict(), columns), 1)
