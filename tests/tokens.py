"""A tokenizer for tiny models."""

from __future__ import annotations

from typing import Any


def byte_tokenizer(template: str) -> Any:
    """One token per byte, and <pad>, <end>, <user> and <assistant>, which are 0 to 3.

    Args:
        template: of chats.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE({token: i for i, token in enumerate(["<pad>", "<end>", "<user>", "<assistant>", *letters])}, []))
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    specials = {"pad_token": "<pad>", "eos_token": "<end>", "additional_special_tokens": ["<user>", "<assistant>"]}
    return PreTrainedTokenizerFast(tokenizer_object=bare, chat_template=template, **specials)
