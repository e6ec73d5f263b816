"""How many requests a key may make."""

import pytest
from serving import ask

from lc_ray.serve import auth
from lc_ray.serve.endpoint import Models, asgi
from lc_ray.serve.rate import Rate
from lc_ray.serving import RateSpec


def test_a_bucket_fills_steadily_and_no_higher_than_it_was():
    now = [0.0]
    rate = Rate(RateSpec(requests=2, per="10s"), lambda: now[0])
    assert [rate.take("a"), rate.take("a")] == [0, 0]
    assert rate.take("a") == pytest.approx(5)
    assert rate.take("b") == 0
    now[0] = 4.0
    assert rate.take("a") == pytest.approx(1)
    now[0] = 5.0
    assert rate.take("a") == 0
    now[0] = 1000.0
    assert [rate.take("a") > 0 for _ in range(3)] == [False, False, True]


def test_each_key_has_its_own_and_health_needs_none(predictor, endpoint):
    found = endpoint(predictor, rate={"requests": 2, "per": "1h"})
    app = asgi(Models([found], found.spec), {auth.digest(key): key for key in ("one", "two")})
    assert [ask(app, "GET", "/v1/models", key="one").status_code for _ in range(3)] == [200, 200, 429]
    refused = ask(app, "GET", "/v1/models", key="one")
    assert refused.json()["error"]["code"] == "rate_limited"
    assert ask(app, "POST", "/v1/chat/completions", key="one").json()["error"]["type"] == "requests", "as OpenAI calls this limit"
    assert 1 <= int(refused.headers["retry-after"]) <= 1800
    assert ask(app, "GET", "/v1/models", key="two").status_code == 200
    assert ask(app, "GET", "/v1/models", key="three").status_code == 401
    assert [ask(app, "GET", "/healthz", key="").status_code for _ in range(4)] == [200] * 4
