"""Bytes of tokens, of which OpenAI's clients put characters together that several tokens write."""

import pytest
from talking import ask
from tokenizers import Tokenizer, decoders, models
from tokens import byte_tokenizer
from transformers import PreTrainedTokenizerFast

from lc_ray.serve.spelling import coded


def sentencepiece():
    words = Tokenizer(models.BPE({word: i for i, word in enumerate(["▁", "b", *(f"<0x{i:02X}>" for i in range(256))])}, [], byte_fallback=True))
    words.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=words)


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(""), sentencepiece()], ids=["bytewise", "sentencepiece"])
def test_parts_of_a_character_have_their_bytes(tokenizer):
    text = "bé日🙂"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode())
    assert [byte for one in ids for byte in coded(tokenizer, one, tokenizer.decode([one]))] == list(text.encode())


def test_what_no_vocabulary_tells():
    unknown = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"\N{REPLACEMENT CHARACTER}日": 0}, unk_token="x")))
    assert coded(unknown, 0, "\N{REPLACEMENT CHARACTER}日") is None


def test_a_clients_tokens_have_them(client):
    tokens = ask(client, temperature=0, max_tokens=40, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert any("\N{REPLACEMENT CHARACTER}" in one.token for one in tokens)
    assert all(part.bytes for one in tokens for part in (one, *one.top_logprobs))
