"""FastAPI around a transformers pipeline: the dense model in fp32, as its authors show it."""

from __future__ import annotations

import os
from typing import Annotated

import uvicorn
from fastapi import Body, FastAPI
from transformers import pipeline

app = FastAPI()
classify = pipeline("text-classification", os.environ["DENSE"], top_k=None)


@app.post("/predict")
def predict(instances: Annotated[list[str], Body(embed=True)]) -> dict[str, object]:
    return {"predictions": classify(instances)}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="error")
