"""Following a job over a connection that says no more."""

import asyncio

from lc_ray.cluster import jobs


class Silent(jobs.Jobs):
    """A cluster whose server goes silent after its first lines, and hears that the job is over on being asked again."""

    def __init__(self):
        self.asked, self._client = 0, self

    async def tail_job_logs(self, name):
        self.asked += 1
        yield "one\ntwo\n"
        if self.asked > 1:
            yield "three\n"
        await asyncio.Event().wait()

    def get(self, name):
        return jobs.Job(name, "tiny", "key", "RUNNING" if self.asked == 1 else "SUCCEEDED", "", 1.0, 2.0, "node")


def test_a_silent_connection_is_made_anew(monkeypatch):
    monkeypatch.setattr(jobs, "_SILENCE", 0.05)
    lines = []
    assert Silent().follow("tiny-1", lines.append).status == "SUCCEEDED"
    assert lines == ["one", "two", "three"]
