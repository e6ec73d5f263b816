"""Following a job over a connection that says no more."""

import asyncio
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ray.job_submission import JobDetails, JobType

from lc_ray.cluster import jobs
from lc_ray.cluster.clusters import Cluster
from lc_ray.errors import ClusterError


class Silent(jobs.Jobs):
    """A cluster whose server goes silent after its first lines, and hears that the job is over on being asked again."""

    def __init__(self):
        self.asked, self._client, self.address = 0, self, "http://there"

    async def tail_job_logs(self, name):
        self.asked += 1
        yield "one\ntwo\n"
        if self.asked > 1:
            yield "three\nfo"
        await asyncio.Event().wait()

    def get_job_logs(self, name):
        return "one\ntwo\nthree\nfour\nfive\n"

    def get(self, name):
        return jobs.Job(name, "tiny", "key", "RUNNING" if self.asked == 1 else "SUCCEEDED", "", 1.0, 2.0, "node")


def test_a_silent_connection_is_made_anew(monkeypatch):
    monkeypatch.setattr(jobs, "_SILENCE", 0.05)
    lines = []
    assert Silent().follow("tiny-1", lines.append).status == "SUCCEEDED"
    assert lines == ["one", "two", "three", "four", "five"], "the last of which it says only when it is asked for all of them"


def test_a_cluster_that_answers_no_more_is_given_up(monkeypatch):
    over = threading.Event()

    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path != "/api/version":
                over.wait(30)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"ray_version": "2.60.0"}')

    monkeypatch.setattr(jobs, "_SILENCE", 0.2)
    with ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = jobs.Jobs(Cluster(address=f"http://127.0.0.1:{server.server_port}"))
        with pytest.raises(ClusterError, match="timed out"):
            there.get("tiny-1")
        over.set()
        server.shutdown()
    monkeypatch.setattr(jobs, "_PATIENCE", 0.0)
    with pytest.raises(ClusterError, match=r"tiny-1: the cluster can't be reached: \[Errno 111\] Connection refused\n  → is it up"):
        there.follow("tiny-1", print)


@pytest.mark.parametrize(("name", "others"), [("no_proxy", ""), ("NO_PROXY", "example.org"), ("no_proxy", "*")])
def test_a_forwarded_port_is_asked_past_a_proxy(monkeypatch, name, others):
    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[]" if "jobs" in self.path else b'{"ray_version": "2.60.0"}')

    for one in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(one, "")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv(name, others)
    with ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert jobs.Jobs(Cluster(address=f"http://127.0.0.1:{server.server_port}")).all() == []
        server.shutdown()
    assert others in os.environ["no_proxy"]


def test_of_a_file_whose_download_breaks_off_nothing_is_left(tmp_path):
    class Breaking(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-length", "100")
            self.end_headers()
            self.wfile.write(b'{"ray_version": "2.60.0"}'.ljust(50 if "logs" in self.path else 100))

    with ThreadingHTTPServer(("127.0.0.1", 0), Breaking) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = jobs.Jobs(Cluster(address=f"http://127.0.0.1:{server.server_port}"))
        with pytest.raises(ClusterError, match=r"the cluster answered: .*closed"):
            there.download(Silent().get("tiny-1"), "record.json", tmp_path / "record.json")
        server.shutdown()
    assert list(tmp_path.iterdir()) == []


def test_of_a_look_that_failed_the_error_is_told_and_not_the_program():
    class Failed(jobs.Jobs):
        def __init__(self):
            self.address, self._client = "http://there", self

        def submit(self, command, name, metadata, environment):
            self.printed = f"Running entrypoint for job {name}: {command}\nNo module named 'ray'\n"

        def get(self, name):
            return jobs.Job(name, "", "", "FAILED", "exited with 1", 1.0, 2.0, "node")

        def get_job_logs(self, name):
            return self.printed

        def delete_job(self, name):
            return True

    with pytest.raises(ClusterError) as told:
        Failed().output("python -c 'import ray'")
    assert str(told.value) == "http://there: a first look at the cluster failed: No module named 'ray'"


def test_a_job_that_is_stopped_has_ended_by_then():
    class Ending(Silent):
        def stop_job(self, name):
            return True

        def get(self, name):
            self.asked += 1
            return jobs.Job(name, "tiny", "key", "RUNNING" if self.asked < 3 else "STOPPED", "", 1.0, 2.0, "node")

    there = Ending()
    assert there.stop("tiny-1")
    assert there.asked == 3, "it may be submitted again"


def test_of_a_job_that_is_not_there_the_others_are_pointed_at():
    class Client:
        def stop_job(self, name):
            raise RuntimeError(f"Request failed with status code 404: Job {name} does not exist.")

    there = Silent()
    there._client = Client()
    with pytest.raises(ClusterError, match=r"tiny-2 does not exist\.\n  → `lc-ray jobs list`"):
        there.stop("tiny-2")


def test_of_a_job_that_was_killed_its_log_is_not_told_as_the_reason():
    why = "Job entrypoint command failed with exit code -9, last available logs (truncated to 20,000 chars):\n" + '{"event": "stage"}\n' * 900
    details = JobDetails(submission_id="tiny-1", type=JobType.SUBMISSION, entrypoint="python", status="FAILED", message=why)
    assert jobs._job(details).message == "Job entrypoint command failed with exit code -9"
