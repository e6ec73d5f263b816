"""FastAPI around ONNX Runtime: the dense model in dynamic int8, a request at a time in FastAPI's thread pool."""

from __future__ import annotations

import os
from typing import Annotated

import numpy as np
import onnxruntime
import uvicorn
from fastapi import Body, FastAPI
from transformers import AutoTokenizer

app = FastAPI()
tokenizer = AutoTokenizer.from_pretrained(os.environ["DENSE"])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = os.cpu_count() or 1
session = onnxruntime.InferenceSession(os.environ["ONNX"], options, providers=["CPUExecutionProvider"])
names = {i.name for i in session.get_inputs()}


@app.post("/predict")
def predict(instances: Annotated[list[str], Body(embed=True)]) -> dict[str, object]:
    batch = tokenizer(instances, padding=True, truncation=True, max_length=64, return_tensors="np")
    (logits,) = session.run(["logits"], {name: value.astype(np.int64) for name, value in batch.items() if name in names})
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return {"predictions": (odds / odds.sum(1, keepdims=True)).tolist()}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="error")
