"""FastAPI around our engine, a request at a time in its thread pool: what a server of one page gives."""

from __future__ import annotations

import os
from typing import Annotated

import uvicorn
from fastapi import Body, FastAPI

import lc_ray

app = FastAPI()
predictor = lc_ray.load(os.environ["ARTIFACT"], threads=os.cpu_count())


@app.post("/predict")
def predict(instances: Annotated[list[str], Body(embed=True)]) -> dict[str, object]:
    return {"predictions": predictor.predict(instances)}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="error")
