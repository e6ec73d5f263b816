"""HTTPS on a real local Ray Serve."""

import ssl
import subprocess

import httpx
import pytest

from lc_ray.errors import ServeError
from lc_ray.serve import app
from lc_ray.serving import ServeSpec

KEY = "a key for tests"


def test_a_missing_file_is_found_before_anything_starts(tiny_artifact, tls):
    with pytest.raises(ServeError, match=r"nothing\.pem"):
        app.start([tiny_artifact], ServeSpec(port=0, tls=tls | {"key": "nothing.pem"}), {"test": KEY})


def test_files_that_are_no_certificate_and_its_key(tiny_artifact, tls, tmp_path):
    (tmp_path / "garbage.pem").write_text("garbage")
    other = {"certificate": tls["certificate"], "key": str(tmp_path / "other.pem")}
    subprocess.run(["openssl", "genrsa", "-out", other["key"]], check=True, capture_output=True)
    locked = other | {"key": str(tmp_path / "locked.pem")}
    subprocess.run(["openssl", "rsa", "-aes128", "-passout", "pass:x", "-in", other["key"], "-out", locked["key"]], check=True, capture_output=True)
    for files in (dict.fromkeys(tls, str(tmp_path / "garbage.pem")), other, locked):
        with pytest.raises(ServeError, match="no certificate and its key"):
            app.start([tiny_artifact], ServeSpec(port=0, tls=files), {"test": KEY})


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
