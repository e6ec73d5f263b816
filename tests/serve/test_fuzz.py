"""Mutated pictures, sounds and bodies: a short run of benchmarks/fuzz.py."""

import asyncio

import fuzz
import httpx
import pytest
from serving import KEY

from lc_ray.serve import auth
from lc_ray.serve.endpoint import Models, asgi


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_that_is_sent_makes_it_fail(fused, tiny_language, endpoint, seed):
    found = [endpoint(one) for one in (fused, tiny_language)]
    app = asgi(Models(found, found[0].spec), {auth.digest(KEY): "test"})

    async def main():
        headers = {"authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=headers) as client:
            return await fuzz.send(client, ["talk"], 100, seed)

    found = asyncio.run(main())
    assert found.failures == []
    assert {("pictures", 200), ("pictures", 400), ("sounds", 200), ("JSON", 200), ("JSON", 400)} <= found.statuses.keys()
