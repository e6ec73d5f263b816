import asyncio
import threading
import time

import pytest

from lc_ray.errors import DataError
from lc_ray.serve.batching import Batcher, QueueFull
from lc_ray.serve.grouping import Grouping
from lc_ray.spec import InputSpec


class Column:
    """Texts whose size is their length; "poison" fails where the tokenizer would, "bomb" where the engine would."""

    spec = InputSpec(column="text")

    def prepare(self, values):
        if "poison" in values:
            raise DataError("poison")
        return {"text": values}

    def sizes(self, parts):
        return [len(text) for text in parts["text"]]


class Fake:
    """A predictor that answers with the text and remembers its batches."""

    def __init__(self):
        self.columns, self.batches = {"text": Column()}, []
        self.gate = threading.Event()
        self.gate.set()

    def answers(self, prepared, batch_size):
        self.gate.wait(10)
        self.batches.append(prepared["x.text" if "x.text" in prepared else "text.text"])
        if "bomb" in self.batches[-1]:
            raise RuntimeError("boom")
        return [text.upper() for text in self.batches[-1]]


@pytest.fixture
def fake():
    return Fake()


def rows(*texts):
    return [{"text": text} for text in texts]


async def joined(fake, batcher, requests):
    """Results of requests that all wait while a first one runs."""
    fake.gate.clear()
    first = asyncio.ensure_future(batcher.run(rows("first")))
    await asyncio.sleep(0.05)
    tasks = [asyncio.ensure_future(batcher.run(rows(*request))) for request in requests]
    await asyncio.sleep(0.05)
    fake.gate.set()
    return (await asyncio.gather(first, *tasks, return_exceptions=True))[1:]


def together(fake, requests, **options):
    """The same, with a batcher of these options."""

    async def main():
        batcher = Batcher(fake, **({"rows": 8, "wait": 0.0, "queue": 100} | options))
        results = await joined(fake, batcher, requests)
        batcher.close()
        return results

    return asyncio.run(main())


def test_requests_that_wait_share_batches_and_keep_their_order(fake):
    requests = [[f"{i}{j}" for j in range(3)] for i in range(6)]
    assert together(fake, requests) == requests
    assert [len(batch) for batch in fake.batches] == [1, 8, 8, 2]


def test_request_larger_than_a_batch(fake):
    texts = [f"{i:03}" for i in range(50)]
    assert together(fake, [texts]) == [texts]


def test_rows_that_fail_fail_alone(fake):
    poisoned, bombed, *good = together(fake, [["poison"], ["bomb", "a"], ["b"], ["c", "d"]])
    assert isinstance(poisoned, DataError)
    assert isinstance(bombed, RuntimeError)
    assert good == [["B"], ["C", "D"]]


def test_full_queue(fake):
    results = together(fake, [["a"], ["b"], ["c"], ["d"]], queue=2)
    assert results[:2] == [["A"], ["B"]]
    assert [type(r) for r in results[2:]] == [QueueFull, QueueFull]


def test_cancelled_requests_do_not_run(fake):
    async def main():
        batcher = Batcher(fake, rows=8, wait=0.0, queue=100)
        fake.gate.clear()
        first = asyncio.ensure_future(batcher.run(rows("first")))
        await asyncio.sleep(0.05)
        left, kept = (asyncio.ensure_future(batcher.run(rows(text))) for text in ("left", "kept"))
        await asyncio.sleep(0.05)
        left.cancel()
        fake.gate.set()
        assert await kept == ["KEPT"]
        await first
        batcher.close()

    asyncio.run(main())
    assert fake.batches == [["first"], ["kept"]]


def test_lone_client_is_not_kept_waiting(fake):
    async def main():
        batcher = Batcher(fake, rows=8, wait=5.0, queue=100)
        start = time.monotonic()
        for _ in range(3):
            await batcher.run(rows("x"))
        batcher.close()
        return time.monotonic() - start

    assert asyncio.run(main()) < 2


def test_after_company_a_batch_waits_until_as_many_have_come_again(fake):
    async def main():
        batcher = Batcher(fake, rows=8, wait=30.0, queue=100)
        await joined(fake, batcher, "abc")
        again = []
        for text in "def":
            again.append(asyncio.ensure_future(batcher.run(rows(text))))
            await asyncio.sleep(0.05)
        results = await asyncio.wait_for(asyncio.gather(*again), 10)
        batcher.close()
        return results

    assert asyncio.run(main()) == [["D"], ["E"], ["F"]]
    assert fake.batches == [["first"], ["a", "b", "c"], ["d", "e", "f"]]


def test_company_that_does_not_come_is_not_waited_for_long(fake):
    async def main():
        batcher = Batcher(fake, rows=8, wait=0.2, queue=100)
        await joined(fake, batcher, "ab")
        took = []
        for text in "cd":
            start = time.monotonic()
            await batcher.run(rows(text))
            took.append(time.monotonic() - start)
        batcher.close()
        return took

    waited, alone = asyncio.run(main())
    assert 0.2 <= waited < 10
    assert alone < 0.2


def test_rows_that_would_not_run_together_wait_for_nobody(fake):
    requests = [["x" * 9], ["y" * 900], ["x" * 8], ["y" * 901]]

    async def main():
        batcher = Batcher(fake, rows=8, wait=30.0, queue=100)
        results = await joined(fake, batcher, requests)
        results.append(await batcher.run(rows("z")))
        batcher.close()
        return results

    start = time.monotonic()
    assert asyncio.run(main()) == [[text.upper() for text in request] for request in [*requests, ["z"]]]
    assert time.monotonic() - start < 10
    assert [len(batch[0]) for batch in fake.batches[1:]] == [9, 900, 1]


def test_close_ends_the_thread(fake):
    batcher = Batcher(fake, rows=3, wait=0.0, queue=1)
    assert batcher.alive
    batcher.close()
    batcher._thread.join(5)
    assert not batcher.alive


def test_of_many_rows_that_wait_some_are_prepared_and_chosen_among(fake, monkeypatch):
    among, choose = [], Grouping.choose
    monkeypatch.setattr(Grouping, "choose", lambda self, sizes: among.append(len(sizes)) or choose(self, sizes))
    requests = [[f"{n} {row}" for row in range(40)] for n in range(50)]
    assert together(fake, requests, rows=4) == [[text.upper() for text in request] for request in requests]
    assert max(among) < 4 * 32 + 40
