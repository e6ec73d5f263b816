"""Causal language models of many families: read in batches, beside each other, and token by token, each says what transformers has it say."""

import functools

import pytest
import torch
from artifacts import save
from tokens import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, BartConfig, BartForConditionalGeneration

import lc_ray
from lc_ray.errors import ModelError
from lc_ray.models import load
from lc_ray.models.batches import TARGET, feed, prepare
from lc_ray.quantize import none
from lc_ray.quantize.int8 import Run
from lc_ray.quantizer import quantize
from lc_ray.spec import InputSpec, ModelSpec, QuantizeSpec
from lc_ray.tasks._decoder import Whole
from lc_ray.tasks.text_generation import Task

IDS = {"vocab_size": 260, "eos_token_id": 1, "bos_token_id": 1, "pad_token_id": 0}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
OPEN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
LLAMA = OPEN | {"intermediate_size": 48, "num_key_value_heads": 2}
GEMMA = LLAMA | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
NEO = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64}
FAMILIES = {
    "gpt_neo": NEO,
    "gptj": GPT | {"rotary_dim": 4},
    "codegen": GPT | {"rotary_dim": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 64},
    "falcon": OPEN | {"multi_query": True},
    "falcon, of distances": OPEN | {"alibi": True, "multi_query": False, "parallel_attn": False},
    "gpt_neox": OPEN | {"intermediate_size": 48},
    "mistral": LLAMA | {"sliding_window": 6},
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
}
PROMPTS = ["Hi", "What is the weather like", "a b c d", "zz 12 34"]


def folder(path, kind, sizes):
    """A random model with no weight at zero."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **IDS, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(path)
    byte_tokenizer("").save_pretrained(path)
    return path


def setting(base, **options):
    inputs = [InputSpec(column="prompt", base=str(base), max_length=32)]
    columns = load.modalities(inputs)
    task = Task.fit(iter(["x"]), Task.Options(max_new_tokens=8, **options), columns).bind(columns)
    return inputs, columns, task


def answers(base, columns):
    """Tokens by transformers' own greedy decoding."""
    plain, found = AutoModelForCausalLM.from_pretrained(base), []
    for prompt in PROMPTS:
        ids = columns["prompt"].tokenizer(prompt, return_tensors="pt")["input_ids"]
        whole = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0)
        found.append(whole[0, ids.shape[1] :].tolist())
    return found


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_text_has_one_answer_in_any_company(kind, tmp_path):
    base = folder(tmp_path, kind.partition(",")[0], FAMILIES[kind])
    inputs, columns, task = setting(base)
    model = load.pretrained(ModelSpec(), inputs, task).eval()
    prompts, _ = feed(prepare({"prompt": PROMPTS}, columns), columns, task)
    assert task.answer(none.Run(model, 1), prompts) == answers(base, columns)
    rows = prepare({"prompt": PROMPTS}, columns) | {TARGET: ["a", "bcd", "ef", "g"]}
    losses = []
    for packing in (False, True):
        _, _, packed = setting(base, packing=packing)
        batch, targets = feed(rows, columns, packed, training=True)
        losses.append((len(targets), packed.loss(model(batch), targets).item()))
    assert losses[1][0] < losses[0][0]
    assert losses[1][1] == pytest.approx(losses[0][1], rel=1e-4)


@pytest.mark.parametrize("kind", ["bloom", "falcon", "gemma2"])
def test_an_engine_goes_on_with_what_it_kept(kind, tmp_path):
    inputs, columns, task = setting(folder(tmp_path / "base", kind, FAMILIES[kind]))
    model = load.pretrained(ModelSpec(), inputs, task).eval()
    dense = save(tmp_path / "dense", model, task, inputs)
    rows = prepare({"prompt": PROMPTS}, columns) | {TARGET: ["a", "bcd", "ef", "g"]}
    engine = Run(quantize(dense, QuantizeSpec(), rows, tmp_path / "int8", "int8").path / "engine", 1, exact=True)
    batch, _ = feed(rows, columns, task)
    wanted = none.Run(model, 1)(batch)
    assert abs(engine(batch) - wanted).mean() < 0.1 * wanted.std()
    decoder, whole = engine.decoder(), Whole(functools.partial(task._next, engine))
    for one in (decoder, whole):
        for prompt in [one.begin(ids) for ids in ([70, 71], [72] * 19, [73, 74, 75])]:
            one.read([prompt])
            one.join(prompt)
    for tokens in ([80, 81, 82], [83, 84, 85]):
        torch.testing.assert_close(decoder.step(tokens), whole.step(tokens), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("lfm2", LLAMA | {"layer_types": ["conv", "full_attention"]}),  # keeps a state
        ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),  # counts positions by itself
        ("gpt_neo", NEO | {"window_size": 6}),
    ],
)
def test_what_can_not_be_kept_is_read_again(kind, sizes, tmp_path, caplog):
    base = folder(tmp_path / "base", kind, sizes)
    inputs, columns, task = setting(base)
    model = load.pretrained(ModelSpec(), inputs, task).eval()
    assert "all before it is read again" in caplog.text
    rows = prepare({"prompt": PROMPTS}, columns)
    prompts, _ = feed(rows, columns, task)
    expected = answers(base, columns)
    assert task.answer(none.Run(model, 1), prompts) == expected
    found = save(tmp_path / "dense", model, task, inputs)
    assert [task.decode(ids, {}) for ids in expected] == lc_ray.load(found.path).answers(rows)
    _, _, packed = setting(base, packing=True)
    with pytest.raises(ModelError, match=r"would see each other.*\n.*task.packing"):
        load.pretrained(ModelSpec(), inputs, packed)


def test_a_model_that_sees_later_tokens_is_refused(tmp_path):
    inputs, _, task = setting(folder(tmp_path, "xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}))
    with pytest.raises(ModelError, match="depends on later tokens"):
        load.pretrained(ModelSpec(), inputs, task)


def test_a_model_whose_encoder_would_be_left_out_is_refused(tmp_path):
    sizes = dict.fromkeys(("d_model", "encoder_ffn_dim", "decoder_ffn_dim"), 32) | dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
    heads = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    BartForConditionalGeneration(BartConfig(**IDS | sizes | heads, max_position_embeddings=64)).save_pretrained(tmp_path)
    byte_tokenizer("").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="reads with an encoder, and is no causal language model: bart"):
        load.pretrained(ModelSpec(base=str(tmp_path)), *setting(tmp_path)[::2])
