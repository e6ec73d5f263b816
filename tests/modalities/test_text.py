import numpy as np
import pytest
import torch
from transformers import BertModel

from lc_ray.errors import DataError, ModelError
from lc_ray.modalities.text import Encoder, Modality
from lc_ray.spec import InputSpec


@pytest.fixture(scope="module")
def modality(tiny_base):
    return Modality(InputSpec(column="text", max_length=12), tiny_base)


@pytest.mark.parametrize(("value", "text"), [("good day", "good day"), (b"caf\xc3\xa9", "café")])
def test_usable_cells(modality, value, text):
    assert modality.decode(value) == text


@pytest.mark.parametrize(
    ("value", "reason"),
    [(None, "null"), (float("nan"), "null"), (5, "int"), (["x"], "list"), ("", "empty"), ("  ", "empty"), (b"\xff", "UTF-8"), ("\ud83d", "Unicode")],
)
def test_unusable_cells_say_why(modality, value, reason):
    with pytest.raises(DataError, match=reason):
        modality.decode(value)


def test_broken_utf8_is_replaced_on_request(modality):
    assert modality.decode(b"caf\xff", "replace") == "caf\ufffd"


def test_long_texts_are_cut(modality):
    assert modality.sizes(modality.prepare(["good " * 100, "good"])) == [12, 3]


def test_padding_is_masked(modality):
    batch = modality.collate(modality.prepare(["good", "good day that was"]))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 8)
    assert batch["attention_mask"].sum(1).tolist() == [3, 6]
    assert (batch["input_ids"][batch["attention_mask"] == 0] == modality.tokenizer.pad_token_id).all()


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


def test_no_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', "utf-8")
    with pytest.raises(ModelError):
        Modality(InputSpec(column="text"), tmp_path / "nothing")
