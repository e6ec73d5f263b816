import json

import numpy as np
import pyarrow as pa
import pytest
from transformers import BertTokenizerFast

from lc_ray.errors import DataError
from lc_ray.modalities._conversation import SAID
from lc_ray.modalities.chat import Encoder, Modality
from lc_ray.spec import InputSpec

TEMPLATE = """{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('system comes first') }}{% endif %}\
[CLS] {{ m.role == 'user' and 'i' or 'you' }} {{ m.content }} [SEP] {% endfor %}{% if add_generation_prompt %}[CLS] you {% endif %}"""
TALK = [{"role": "user", "content": "good day"}, {"role": "assistant", "content": "best day ever"}]


@pytest.fixture(scope="module")
def base(tiny_base, tmp_path_factory):
    import shutil

    folder = tmp_path_factory.mktemp("chat") / "base"
    shutil.copytree(tiny_base, folder)
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chat(base):
    return Modality(InputSpec(column="talk", modality="chat", base=str(base), max_length=16), base)


def said(chat, parts, row=0):
    marked = [token for token, mask in zip(parts["input_ids"][row], parts["mask"][row], strict=True) if mask == SAID]
    return chat.tokenizer.decode(marked)


SHARED = [{"from": "human", "value": "good day", "role": None}, {"from": "gpt", "value": "best day ever", "role": None}]


WRITTEN = [json.dumps(TALK), json.dumps(TALK).encode(), str(TALK)]
PARTS = [{**m, "content": [{"type": "text", "text": m["content"][:4]}, {"type": "text", "text": m["content"][4:]}]} for m in TALK]
SILENT = [{"role": "system", "content": ""}], [{"from": "system", "value": None}]


CONVERSATIONS = [TALK, SHARED, *WRITTEN, PARTS, np.array(TALK), [{**m, "id": 3} for m in TALK], SILENT[0] + TALK, SILENT[1] + SHARED]
CONVERSATIONS += [[SHARED[0], {**SHARED[1], "from": name}] for name in ("bing", "bard", "model")]
CONVERSATIONS += [[{**m, "content": np.array(m["content"])} for m in PARTS]]  # as pandas has lists within lists


@pytest.mark.parametrize("value", CONVERSATIONS)
def test_cells_as_conversations(chat, value):
    assert chat.decode(value) == TALK


def test_a_developer_is_the_system(chat):
    assert chat.decode([{"role": "developer", "content": "be brief"}, *TALK]) == [{"role": "system", "content": "be brief"}, *TALK]


@pytest.mark.parametrize("text", ["good day", "[urgent] my flight is late", "[1, 2, 3] sum these", "[1, 2]", '["a", {}]', "[{", "[" * 50_000])
def test_a_text_is_what_the_user_says(chat, text):
    assert chat.decode(text) == [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "null"),
        ([], "1 to 256 messages, not 0"),
        (TALK * 129, "not 258"),
        ("[]", "1 to 256 messages, not 0"),
        (SILENT[0], "1 to 256 messages, not 0"),
        ([*SILENT[0], {"role": "user", "content": [{"type": "image_url"}]}], "message 1: a part of it is of type 'image_url'"),
        (["hi"], "message 0 is not"),
        ([np.array(["hi", "you"])], "message 0 is not"),
        ([{"role": "system", "content": np.array([1, 2])}, *TALK], "message 0: not text"),
        ([TALK[0], {"from": "robot", "value": "x"}], "message 1 is not"),
        ([{"role": "robot", "content": "x"}], "role"),
        ([{"from": [], "value": "x"}], "message 0 is not"),
        ('[{"from": {}}]', "message 0 is not"),
        ([*TALK, {"role": "user", "content": None}], "message 2: null"),
        ([*TALK, {"role": "user", "content": " "}], "message 2: empty"),
        (TALK[1:], "nobody but the assistant speaks"),
        ([TALK[0], {**TALK[1], "weight": 0.5}], "message 1: its weight is 0 or 1, not 0.5"),
        ([*TALK, {"role": "system", "content": "be brief"}], "refuses the conversation: system comes first"),
    ],
)
def test_cells_that_are_no_conversation(chat, value, message):
    with pytest.raises(DataError, match=message):
        chat.decode(value)


def test_what_the_assistant_says_is_marked(chat):
    parts = chat.prepare([TALK, TALK[:1], [*TALK[:1], {"role": "assistant", "content": "ok"}, *TALK]])
    assert said(chat, parts) == "best day ever [SEP]"
    assert said(chat, parts, 1) == ""
    assert chat.tokenizer.decode(parts["input_ids"][1]).endswith("[CLS] you"), "the assistant is asked"
    assert said(chat, parts, 2) == "ok [SEP] best day ever [SEP]"


def test_what_follows_the_end_of_a_turn_is_not_said(chat, base):
    """As a line break that ChatML has there: who generates stops before it."""
    following = Modality(InputSpec(column="talk", modality="chat", base=str(base), max_length=64), base)
    following.tokenizer.chat_template = TEMPLATE.replace("[SEP] {%", "[SEP] and {%")
    parts = following.prepare([[*TALK, *TALK]])
    assert following.tokenizer.decode(parts["input_ids"][0]).count("[SEP] and") == 4
    assert said(following, parts) == "best day ever [SEP] best day ever [SEP]"


def test_long_conversations_lose_their_beginning(chat):
    parts = chat.prepare([[{"role": "user", "content": "good " * 30}, TALK[1]]])
    assert len(parts["input_ids"][0]) == len(parts["mask"][0]) == 16
    assert said(chat, parts) == "best day ever [SEP]"


def test_tensors(chat):
    parts = chat.prepare([TALK, TALK[:1]])
    tensors = chat.collate(parts)
    assert tensors["input_ids"].shape == tensors["attention_mask"].shape == (2, 16)
    assert tensors["attention_mask"].unique().tolist() == [0, 1, 2]
    assert chat.sizes(parts) == [(row > 0).sum().item() for row in tensors["attention_mask"]]
    assert chat.show({"messages": parts["messages"][0]}) == TALK
    kept = pa.array([TALK, TALK[:1]], Modality.TYPE).to_pylist()
    assert chat.prepare(kept) == parts


def test_the_encoder_reads_all(chat, base):
    encoder = Encoder.pretrained(chat.spec.model_copy(update={"weights": "pretrained"}), str(base))
    tensors = chat.collate(chat.prepare([TALK]))
    hidden, mask = encoder(**tensors)
    assert hidden.shape == (1, 16, 32)
    assert mask.max() == 1


def test_of_a_book_no_more_is_read_than_its_end(chat, monkeypatch):
    talk = [{"role": "user", "content": "bad " * 100_000 + "good day"}, TALK[1]]
    short = chat.prepare([[{"role": "user", "content": "bad " * 100 + "good day"}, TALK[1]]])
    read, tokenizer = [], chat.tokenizer
    for name in ("_uncut", "tokenizer"):
        monkeypatch.setattr(chat, name, Reading(tokenizer, read))
    assert {**chat.prepare([talk]), "messages": short["messages"]} == short
    assert max(len(text) for texts in read for text in texts) < 2000


class Reading:
    """A tokenizer that notes what it reads."""

    def __init__(self, tokenizer, read):
        self.tokenizer, self.read = tokenizer, read

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, texts, **how):
        self.read.append([texts] if isinstance(texts, str) else texts)
        return self.tokenizer(texts, **how)
