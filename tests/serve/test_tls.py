"""HTTPS on a real local Ray Serve."""

import ssl
import subprocess

import httpx
import pytest

from lc_ray.errors import ServeError
from lc_ray.serve import app
from lc_ray.spec import ServeSpec

KEY = "a key for tests"


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A certificate of this machine, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    files = {"certificate": str(folder / "cert.pem"), "key": str(folder / "key.pem")}
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*make.split(), "-keyout", files["key"], "-out", files["certificate"]], check=True, capture_output=True)
    return files


def test_a_missing_file_is_found_before_anything_starts(tiny_artifact, tls):
    with pytest.raises(ServeError, match=r"nothing\.pem"):
        app.start([tiny_artifact], ServeSpec(port=0, tls=tls | {"key": "nothing.pem"}), {"test": KEY})


@pytest.mark.cluster
def test_https(ray_local, tiny_artifact, tls):
    url = app.start([tiny_artifact], ServeSpec(port=0, tls=tls), {"test": KEY})
    try:
        assert url.startswith("https://")
        trust = ssl.create_default_context(cafile=tls["certificate"])
        with httpx.Client(base_url=url, verify=trust, headers={"authorization": f"Bearer {KEY}"}) as client:
            assert "label" in client.post("/v1/models/tiny:predict", json={"instances": ["good"]}).json()["predictions"][0]
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https", "http") + "/healthz")
    finally:
        app.stop()
