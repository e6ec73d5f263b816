"""LitServe around our engine, batching as its documentation has it."""

from __future__ import annotations

import os

import litserve

import lc_ray


class Api(litserve.LitAPI):
    """One row per request, as LitServe's batching wants it."""

    def setup(self, device: str) -> None:
        self.predictor = lc_ray.load(os.environ["ARTIFACT"], threads=os.cpu_count())

    def decode_request(self, request: dict[str, list[str]]) -> str:
        return request["instances"][0]

    def predict(self, texts: list[str]) -> list[dict[str, object]]:
        return self.predictor.predict(texts)

    def encode_response(self, answer: dict[str, object]) -> dict[str, object]:
        return {"predictions": [answer]}


if __name__ == "__main__":
    server = litserve.LitServer(Api(max_batch_size=32, batch_timeout=0.005), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="error")
