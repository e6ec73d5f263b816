"""A text of which each line is a row. In fastText's (Joulin et al. 2016, arXiv:1607.01759) its labels come first: `__label__good what a film`."""

from __future__ import annotations

import codecs
from typing import Any

LABEL = b"__label__"


def row(line: bytes) -> dict[str, Any]:
    """A line's `text`, and `label` if it has one, several with a bar between."""
    if b"\0" in line:  # of UTF-16 all but the first could be taken for UTF-8
        return {"_error": "not valid UTF-8"}
    text, labels = line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n"), list[bytes]()
    while text.startswith(LABEL):
        label, _, text = text.partition(b" ")
        labels.append(label.removeprefix(LABEL).rstrip(b","))
    return {"text": text, "label": b"|".join(labels)} if labels else {"text": text}
