import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokens import byte_tokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    OPTModel,
    RobertaConfig,
    T5Config,
    Wav2Vec2Config,
)

from lc_ray.errors import DataError, ModelError
from lc_ray.modalities import text as text_file
from lc_ray.modalities.text import Encoder, Modality
from lc_ray.models import load
from lc_ray.models.batches import collate, prepare
from lc_ray.spec import InputSpec, ModelSpec
from lc_ray.tasks import masked_language_modeling, text_generation
from lc_ray.tasks.classification import Task


@pytest.fixture(scope="module")
def modality(tiny_base):
    return Modality(InputSpec(column="text", max_length=12), tiny_base)


@pytest.mark.parametrize(("value", "text"), [("good day", "good day"), (b"caf\xc3\xa9", "café")])
def test_usable_cells(modality, value, text):
    assert modality.decode(value) == text


def test_numbers_are_texts_in_files_and_not_in_requests(modality):
    assert [modality.decode(value, folder=".") for value in (1984, 2.5, True, date(1984, 1, 2))] == ["1984", "2.5", "True", "1984-01-02"]
    with pytest.raises(DataError, match="null"):
        modality.decode(float("nan"), folder=".")


@pytest.mark.parametrize(
    ("value", "reason"),
    [(None, "null"), (float("nan"), "null"), (5, "int"), (["x"], "list"), ("", "empty"), ("  ", "empty"), (b"\xff", "UTF-8"), ("\ud83d", "Unicode")],
)
def test_unusable_cells_say_why(modality, value, reason):
    with pytest.raises(DataError, match=reason):
        modality.decode(value)


def test_broken_utf8_is_replaced_on_request(modality):
    assert modality.decode(b"caf\xff", "replace") == "caf\ufffd"


@pytest.mark.parametrize("config", [BertConfig(), GPT2Config(), T5Config(), LlamaConfig(), Wav2Vec2Config()])
def test_a_folder_without_a_tokenizer_is_no_source_of_one_that_knows_no_word(config, tmp_path):
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no tokenizer.*\n.*tokenizer\.save_pretrained") as told:
        Modality(InputSpec(column="text"), tmp_path)
    assert ":\n" not in str(told.value)


def test_long_texts_are_cut(modality):
    assert modality.sizes(modality.prepare(["good " * 100, "good"])) == [12, 3]


def test_padding_is_masked(modality):
    batch = modality.collate(modality.prepare(["good", "good day that was"]))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 8)
    assert batch["attention_mask"].sum(1).tolist() == [3, 6]
    assert (batch["input_ids"][batch["attention_mask"] == 0] == modality.tokenizer.pad_token_id).all()


def test_vectors_that_are_projected_have_the_width_that_they_are_projected_to(tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "base")
    shape = {"hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 200, "max_position_embeddings": 16}
    OPTModel(OPTConfig(**shape, word_embed_proj_dim=16)).save_pretrained(tmp_path / "base")
    spec = InputSpec(column="text", base=str(tmp_path / "base"), max_length=8)
    column, encoder = Modality(spec, tmp_path / "base"), Encoder.pretrained(spec, str(tmp_path / "base"))
    hidden, _ = encoder(**column.collate(column.prepare(["good day"])))
    assert hidden.shape[-1] == encoder.width == 16


def test_tokens_that_only_the_tokenizer_knows(tmp_path):
    """A padding token was added to it, and not to the model: of classifiers, and of language models."""
    base = tmp_path / "gpt2"
    tokenizer = byte_tokenizer("")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(base)
    GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=260, n_positions=128, bos_token_id=1, eos_token_id=1).save_pretrained(base)
    inputs = [InputSpec(column="text", base=str(base), weights="random", max_length=12)]
    columns = load.modalities(inputs)
    batch = collate(prepare({"text": ["a", "abc"]}, columns), columns)
    assert batch["text.input_ids"].max() == 260
    for task in (Task(["no", "yes"]), text_generation.Task.fit(iter([None]), text_generation.Task.Options(), columns).bind(columns)):
        model = load.pretrained(ModelSpec(base=str(base)), inputs, task)
        model(batch | {"text.asked": torch.zeros(2, 1, dtype=torch.int64)} if "generation" in type(task).__module__ else batch).sum().backward()


def test_texts_that_are_all_missing(tmp_path):
    """Of a tokenizer that adds no tokens of its own, beside a column that is there."""
    base = tmp_path / "gpt2"
    byte_tokenizer("").save_pretrained(base)
    GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=260, n_positions=16, bos_token_id=1, eos_token_id=1).save_pretrained(base)
    inputs = [
        InputSpec(column="text", base=str(base), weights="random", max_length=12, optional=True),
        InputSpec(column="age", modality="tabular", optional=True),
    ]
    columns, task = load.modalities(inputs), Task(["no", "yes"])
    for kind in ("concat", "gated", "attention"):
        model = load.pretrained(ModelSpec(base=str(base), fusion={"kind": kind}), inputs, task)
        outputs = []
        for texts in ([None, None], [None, "good"]):
            batch = collate(prepare({"text": texts, "age": ["3", "4"]}, columns), columns)
            assert batch["text.input_ids"].shape == batch["text.attention_mask"].shape == (2, 8)
            model.train()(batch).sum().backward()
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
            outputs.append(model.eval()(batch)[0])
        assert outputs[0].isfinite().all()
        torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["many words", "one word", "few words"])
def test_of_a_book_no_more_is_read_than_is_kept(tiny_base, monkeypatch, side, kind):
    modality = Modality(InputSpec(column="text", max_length=12), tiny_base)
    modality.tokenizer.truncation_side = side
    book = {"many words": "good day bad " * 50_000, "one word": "a" * 500_000, "few words": f"good{' ' * 250_000}day{' ' * 250_000}bad"}[kind]
    whole = modality.tokenizer(book, truncation=True, max_length=12)["input_ids"]
    read, tokenizer = [], modality.tokenizer

    def reading(texts, **how):
        read.extend([texts] if isinstance(texts, str) else texts)
        return tokenizer(texts, **how)

    reading.truncation_side = side
    for name in ("_uncut", "tokenizer"):
        monkeypatch.setattr(modality, name, reading)
    assert modality.prepare([book, "good day"])["input_ids"] == [whole, tokenizer("good day")["input_ids"]]
    assert (max(map(len, read)) < 1000) == (kind == "many words")


def test_texts_are_cut_while_other_threads_read_books(tiny_base):
    modality = Modality(InputSpec(column="text", max_length=12), tiny_base)
    texts, book = ["good day bad " * 20] * 50, ["good day bad " * 2000]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda number: modality.prepare(book if number % 2 else texts)["input_ids"], range(1000)))
    assert {len(ids) for rows in found for ids in rows} == {12}


def test_a_book_is_refused_unread_where_texts_are_kept_whole(tiny_base, monkeypatch):
    modality = Modality(InputSpec(column="text", max_length=12), tiny_base)
    modality.keep_whole()
    read, tokenizer = [], modality.tokenizer

    def reading(text, **how):
        read.append(text)
        return tokenizer(text, **how)

    monkeypatch.setattr(modality, "_uncut", reading)
    with pytest.raises(DataError, match="longer than 12 tokens"):
        modality.decode("good day bad " * 50_000)
    assert max(map(len, read)) < 1000


def test_encoder_equals_the_pretrained_model(modality, tiny_base):
    batch = modality.collate(modality.prepare(["good day", "bad"]))
    reference = BertModel.from_pretrained(tiny_base, add_pooling_layer=False).eval()
    encoder = Encoder.pretrained(modality.spec, str(tiny_base)).eval()
    with torch.no_grad():
        hidden, mask = encoder(**batch)
        expected = reference(**batch).last_hidden_state
    assert hidden.shape == (2, 8, encoder.width)
    np.testing.assert_array_equal(hidden, expected)
    assert mask is batch["attention_mask"]


def test_a_rebuilt_encoder_takes_the_weights(modality, tiny_base):
    encoder = Encoder.pretrained(modality.spec, str(tiny_base))
    Encoder.rebuild(encoder.config).load_state_dict(encoder.state_dict())


def test_weights_in_pickle_are_refused(tiny_base, tmp_path):
    for file in tiny_base.iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(BertModel.from_pretrained(tiny_base).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError):
        Encoder.pretrained(InputSpec(column="text"), str(tmp_path))


@pytest.mark.parametrize(("config", "most"), [(BertConfig, 20), (RobertaConfig, 18)])
def test_texts_longer_than_a_model_reads(tmp_path, config, most):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
    config(**shape, max_position_embeddings=20, pad_token_id=1).save_pretrained(tmp_path)
    byte_tokenizer("").save_pretrained(tmp_path)
    spec = InputSpec(column="text", weights="random", max_length=16)
    encoder = Encoder.pretrained(spec, str(tmp_path))
    assert encoder(torch.full((1, 16), 5), torch.ones(1, 16))[0].isfinite().all()
    for longer in (17, most + 1):
        with pytest.raises(ModelError, match=f"reads {most} tokens; this job may give it 24"):
            Encoder.pretrained(spec.model_copy(update={"max_length": longer}), str(tmp_path))
    task = SimpleNamespace(positions=most)
    inputs = [spec]
    masked_language_modeling.Model.pretrained(ModelSpec(), inputs, {"text": str(tmp_path)}, task)
    task.positions += 1
    with pytest.raises(ModelError, match=f"reads {most} tokens"):
        masked_language_modeling.Model.pretrained(ModelSpec(), inputs, {"text": str(tmp_path)}, task)


def test_no_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', "utf-8")
    with pytest.raises(ModelError):
        Modality(InputSpec(column="text"), tmp_path / "nothing")


@pytest.mark.parametrize("kind", ["t5", "xlnet"])
def test_encoders_of_other_shapes(modality, kind, tmp_path):
    sizes = {"t5": {"d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}, "xlnet": {"n_layer": 1, "n_head": 2, "d_inner": 32}}[kind]
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=200, d_model=16, **sizes)).save_pretrained(tmp_path)
    modality.tokenizer.save_pretrained(tmp_path)
    encoder = Encoder.pretrained(modality.spec, str(tmp_path)).eval()
    again = Encoder.rebuild(encoder.config).eval()
    again.load_state_dict(encoder.state_dict())
    batch = modality.collate(modality.prepare(["good day", "bad"]))
    with torch.no_grad():
        hidden, _ = encoder(**batch)
        torch.testing.assert_close(again(**batch)[0], hidden)
    assert hidden.shape == (2, 8, encoder.width)
    assert not any("decoder" in name for name, _ in encoder.named_parameters())


SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 200, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("fnet", {}),  # mixes all positions
        ("convbert", {"embedding_size": 16}),  # convolves neighbours
        ("canine", {"num_hash_buckets": 100, "local_transformer_stride": 8}),
        ("big_bird", {"block_size": 2, "num_random_blocks": 1, "max_position_embeddings": 64}),
    ],
)
def test_neighbours_change_nothing_in_any_family(modality, kind, sizes, tmp_path):
    torch.manual_seed(0)
    made = AutoModel.from_config(AutoConfig.for_model(kind, **(SHAPE | sizes)))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    made.save_pretrained(tmp_path)
    modality.tokenizer.save_pretrained(tmp_path)
    spec = modality.spec.model_copy(update={"max_length": 32})
    encoder = Encoder.pretrained(spec, str(tmp_path)).eval()
    again = Encoder.rebuild(encoder.config).eval()
    again.load_state_dict(encoder.state_dict())
    short, long = (modality.collate({"input_ids": ids}) for ids in ([[5, 6, 7]], [[5, 6, 7], list(range(5, 31))]))
    with torch.no_grad():
        (alone, _), (together, mask), (rebuilt, _) = encoder(**short), encoder(**long), again(**short)
    assert together.shape[:2] == mask.shape == (2, 32)
    torch.testing.assert_close(together[:1, :3], alone[:, :3], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rebuilt, alone)
    assert type(encoder.model) is type(made)


def test_a_model_that_no_padding_suits_is_told(modality, tmp_path):
    shape = SHAPE | {"segment_means_seq_len": 64, "num_landmarks": 8}
    AutoModel.from_config(AutoConfig.for_model("nystromformer", **shape)).save_pretrained(tmp_path)
    modality.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="does not read texts that are padded to 24 tokens"):
        Encoder.pretrained(modality.spec.model_copy(update={"max_length": 24}), str(tmp_path))


def test_a_model_that_reads_pictures_too_is_no_text_model(modality, tmp_path):
    side = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    AutoModel.from_config(CLIPConfig(vision_config=side, text_config=side)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="does not encode texts alone: clip"):
        Encoder.pretrained(modality.spec, str(tmp_path))


def test_texts_of_several_columns_follow_one_another(tiny_base):
    """As premise and hypothesis, or an instruction and what it is about."""
    modality = Modality(InputSpec(column="premise|hypothesis", max_length=12), tiny_base)
    pair = {"premise": b"good day", "hypothesis": "bad"}
    found = modality.decode(pair)
    assert found == "good day [SEP] bad"
    names = modality.tokenizer.convert_ids_to_tokens(modality.prepare([found])["input_ids"][0])
    assert names == ["[CLS]", "good", "day", "[SEP]", "bad", "[SEP]"]
    assert modality.decode(pair | {"premise": " "}) == "bad"
    for nothing in ({"premise": None, "hypothesis": ""}, {"premise": 1.5, "hypothesis": ["a"]}):
        with pytest.raises(DataError):
            modality.decode(nothing)
    modality.tokenizer.sep_token = None
    assert modality.decode(pair) == "good day\nbad"
    with pytest.raises(DataError, match="not text but dict"):
        Modality(InputSpec(column="text"), tiny_base).decode(pair)


def test_long_texts_are_divided_few_at_a_time(modality, monkeypatch):
    texts = ["good day " * n for n in (1, 9, 2, 30, 4)]
    whole, asked, own = modality.windows(texts), [], modality._from_start
    monkeypatch.setattr(text_file, "_TOGETHER", 100)
    monkeypatch.setitem(vars(modality), "_from_start", lambda some, **how: asked.append(some) or own(some, **how))
    assert modality.windows(texts) == whole
    assert [text for some in asked for text in some] == texts
    assert len(asked) == 4
