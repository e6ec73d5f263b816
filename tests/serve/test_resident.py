"""More models than stay in memory."""

import asyncio
import gc
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import safetensors.torch
from artifacts import copied
from serving import KEY, ask

import lc_ray
from lc_ray import artifact
from lc_ray.serve import auth
from lc_ray.serve.endpoint import Endpoint, Models, asgi
from lc_ray.serve.resident import Resident
from lc_ray.serving import ServeSpec


@pytest.fixture(scope="module")
def predictors(tiny_artifact, tmp_path_factory):
    """Three that answer differently."""
    folder, weights = tmp_path_factory.mktemp("several"), safetensors.torch.load_file(tiny_artifact / artifact.WEIGHTS)
    found = []
    for number, name in enumerate("abc"):
        changed = safetensors.torch.save({key: tensor * (1 + number) for key, tensor in weights.items()})
        found.append(lc_ray.load(copied(tiny_artifact, folder / name, changed, name=name), threads=1))
    return found


def same(answers):
    """Up to rounding, which depends on the batch."""
    return [{"label": one["label"], "probabilities": pytest.approx(one["probabilities"], abs=1e-5)} for one in answers]


def test_the_models_that_ran_last_stay_and_the_others_come_when_asked(predictors):
    spec = ServeSpec(replicas={"models": 2})
    resident = Resident(spec.replicas.models)
    models = Models([Endpoint(predictor, spec, resident) for predictor in predictors], spec)
    served = asgi(models, {auth.digest(KEY): "test"})

    def loaded():
        return [predictor.artifact.manifest.name for predictor in predictors if predictor.loaded]

    def answer(name):
        response = ask(served, "POST", f"/v1/models/{name}:predict", json={"instances": ["a good flight"]})
        assert response.status_code == 200
        return response.json()["predictions"]

    assert loaded() == ["b", "c"]
    first = answer("a")
    assert loaded() == ["a", "c"]
    answer("c")
    answer("b")
    assert loaded() == ["b", "c"]
    assert answer("a") == same(first)
    told = ask(served, "GET", "/metrics").text
    for name, held in (("a", 1.0), ("b", 1.0), ("c", 0.0)):
        assert f'lc_ray_model_loaded{{model="{name}",version="{models.main(name).version}"}} {held}' in told
    models.close()


def test_models_are_asked_at_once_and_none_is_answered_by_another(predictors):
    spec = ServeSpec()
    resident = Resident(1)
    endpoints = [Endpoint(predictor, spec, resident) for predictor in predictors]

    async def main():
        return await asyncio.gather(*(endpoint.predict([text]) for _ in range(10) for endpoint in endpoints for text in ("good", "late")))

    answers = asyncio.run(main())
    for place, (predictor, text) in enumerate((predictor, text) for predictor in predictors for text in ("good", "late")):
        assert answers[place::6] == [same(predictor.predict([text]))] * 10
    for endpoint in endpoints:
        endpoint.close()


def test_no_more_engines_are_in_memory_than_stay(predictors):
    """However many threads ask at once."""
    resident, alive, most = Resident(1), weakref.WeakSet(), []

    class Engine:
        def __init__(self, run):
            self.run = run
            alive.add(self)

        def __call__(self, batch):
            most.append(len(alive))
            time.sleep(0.01)
            return self.run(batch)

    opened = [(predictor, predictor._open) for predictor in predictors]
    for predictor, opens in opened:
        predictor._open = lambda opens=opens: Engine(opens())
        predictor.unload()
        predictor.used, predictor.room = resident.used, resident.room
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda one: [one.predict(["good"]) for _ in range(5)], predictors))
    for predictor, opens in opened:
        predictor._open = opens
        predictor.unload()
    assert len(most) == 15
    assert max(most) == 1


def test_an_engine_that_failed_goes_like_any_other(predictors):
    class Broken:
        def __call__(self, batch):
            raise RuntimeError("broken")

    resident, spec, broken = Resident(1), ServeSpec(), Broken()
    endpoints = [Endpoint(predictor, spec, resident) for predictor in predictors[:2]]
    predictors[0]._engine = broken
    gone = weakref.ref(broken)
    del broken

    async def main():
        with pytest.raises(RuntimeError, match="broken") as caught:
            await endpoints[0].predict(["good"])
        begin = time.monotonic()
        assert await endpoints[1].predict(["good"])
        assert gone() is None, caught
        assert time.monotonic() - begin < 20

    asyncio.run(main())
    for endpoint in endpoints:
        endpoint.close()


def test_a_model_that_is_served_no_more_is_not_held(tiny_artifact):
    resident, predictor = Resident(1), lc_ray.load(tiny_artifact, threads=1)
    resident.used(predictor, predictor.engine)
    gone = weakref.ref(predictor)
    del predictor
    gc.collect()
    assert gone() is None
    other = lc_ray.load(tiny_artifact, threads=1)
    resident.used(other, other.engine)
    assert other.loaded


def test_an_engine_is_in_memory_by_the_time_it_is_noted(tiny_artifact):
    """Else one that was let go in between would be there unnoticed."""
    predictor, noted = lc_ray.load(tiny_artifact, threads=1), []
    predictor.used = lambda one, engine: noted.append(one.loaded)
    predictor.unload()
    assert predictor.predict(["good"])
    assert noted == [True]
