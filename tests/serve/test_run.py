import socket

import pytest

from lc_ray import artifact
from lc_ray.errors import ArtifactError, ServeError
from lc_ray.serve import app, auth, run
from lc_ray.spec import ServeSpec


@pytest.fixture
def no_ray(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv(auth.VARIABLE, raising=False)
    monkeypatch.setattr(run.ray, "init", lambda **_: pytest.fail("Ray was started"))


def test_port_in_use_is_found_before_anything_starts(no_ray, tiny_artifact):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ServeError, match="can't listen"):
            run.serve_forever([tiny_artifact], ServeSpec(port=other.getsockname()[1]))


def test_no_artifact_is_found_before_anything_starts(no_ray, tmp_path):
    with pytest.raises(ArtifactError):
        run.serve_forever([tmp_path], ServeSpec(port=0))


def test_welcome_shows_where_the_key_is_but_not_the_key(no_ray, tiny_artifact):
    key = auth.ensure()
    text = run._welcome("http://127.0.0.1:1234", [artifact.read(tiny_artifact)], grpc_port=5678)
    assert key not in text
    assert str(auth.key_file()) in text
    assert "http://127.0.0.1:1234/v1/models/tiny:predict" in text
    assert "127.0.0.1:5678" in text


@pytest.mark.parametrize(("replicas", "fixed"), [({"min": 2, "max": 2}, 2), ({"min": 1, "max": 4}, None)])
def test_replicas_and_queue(replicas, fixed):
    deployment = app.application(["somewhere"], ServeSpec(replicas=replicas, queue=100, batch={"max": 32}), {"test": "key"}, {})._bound_deployment
    config = deployment._deployment_config
    assert config.max_ongoing_requests >= 100 + 32
    assert config.num_replicas == fixed or config.autoscaling_config.max_replicas == replicas["max"]
    assert "key" not in deployment.init_args[0].keys
