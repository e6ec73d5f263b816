"""Pictures and sounds in requests: base64, forms, and URLs that are allowed."""

import asyncio
import base64
import socket
import ssl
import time
from ipaddress import ip_address
from types import SimpleNamespace

import pytest
from serving import KEY, ask, served
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from lc_ray.errors import DataError, SpecError
from lc_ray.serve import auth, urls
from lc_ray.serve.endpoint import Models, asgi
from lc_ray.serve.forms import read_form
from lc_ray.serve.http import HttpError
from lc_ray.serve.urls import Fetcher, check, public
from lc_ray.serving import ServeSpec, UrlsSpec
from lc_ray.spec import parse

PREDICT = "/v1/models/fused:predict"


@pytest.fixture(scope="module")
def app(fused, endpoint):
    return asgi(Models([endpoint(fused)], endpoint(fused).spec), {auth.digest(KEY): "test"})


def predictions(response):
    assert response.status_code == 200, response.text
    return [answer["probabilities"] for answer in response.json()["predictions"]]


def test_base64_and_form_are_the_same_to_the_model(app, fused, png, wav):
    row = {"text": "good flight", "photo": base64.b64encode(png).decode(), "sound": base64.b64encode(wav).decode(), "price": 3}
    expected = fused.predict([row])[0]["probabilities"]
    assert predictions(ask(app, "POST", PREDICT, json={"instances": [row]}))[0] == pytest.approx(expected, abs=1e-5)
    wrapped = row | {name: {"b64": row[name]} for name in ("photo", "sound")}
    assert predictions(ask(app, "POST", PREDICT, json={"instances": [wrapped]}))[0] == pytest.approx(expected, abs=1e-5)
    files, fields = {"photo": ("cat.png", png), "sound": ("x.wav", wav)}, {"text": "good flight", "price": "3"}
    assert predictions(ask(app, "POST", PREDICT, files=files, data=fields))[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("photo", [{"b64": "?"}, {"b64": ""}, {"b64": 5}, {"b64": None}, {"b46": ""}])
def test_base64_that_is_none(app, photo):
    response = ask(app, "POST", PREDICT, json={"instances": [{"text": "good", "photo": photo}]})
    assert (response.status_code, response.json()["error"]["where"]) == (400, "instances.0.photo")


def test_form_of_several_instances_keeps_their_order(app, fused, png):
    texts = ["good flight", "worst day ever"]
    files = [("photo", ("a.png", png)), ("text", (None, texts[0])), ("text", (None, texts[1])), ("photo", ("", b""))]
    expected = [fused.predict([row])[0]["probabilities"] for row in ({"text": texts[0], "photo": png}, {"text": texts[1], "photo": None})]
    for got, wanted in zip(predictions(ask(app, "POST", PREDICT, files=files)), expected, strict=True):
        assert got == pytest.approx(wanted, abs=1e-5)


def test_a_form_of_as_many_instances_as_a_request_may_have(app, endpoint, fused):
    def form(rows):
        return [(name, (None, "1")) for name in fused.columns for _ in range(rows)]

    assert ask(app, "POST", PREDICT, files=form(256)).json()["error"]["where"] == "instances.0.photo", "all were read"
    assert "Maximum number of fields is 1024" in ask(app, "POST", PREDICT, files=form(257)).json()["error"]["message"]
    texts = [("text", ("a.txt", b"good"))] * 256
    lacking = [(name, (f"{name}.bin", b"")) for name in ("photo", "sound", "price") for _ in range(256)]
    assert len(predictions(ask(app, "POST", PREDICT, files=texts + lacking))) == 256
    small = asgi(Models([endpoint(fused, max_instances=2)], endpoint(fused, max_instances=2).spec), {auth.digest(KEY): "test"})
    assert ask(small, "POST", PREDICT, files=form(3)).json()["error"]["code"] == "too_many_instances"


def test_a_form_that_is_cut_off_is_not_answered_in_part(app):
    field = '--y\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n'
    whole = field.format("text", "good") + field.format("price", "3.5") + "--y--\r\n"
    kind = {"content-type": "multipart/form-data; boundary=y"}
    assert ask(app, "POST", PREDICT, content=whole, headers=kind).status_code == 200
    response = ask(app, "POST", PREDICT, content=whole[: whole.index("3.5") + 1], headers=kind)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "malformed_form")
    assert "cut off" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("charset", "sent", "read"),
    [("", "café €".encode(), "café €"), ("; charset=UTF-8", "é".encode(), "é"), ("; charset=iso-8859-1", b"\xe9", "é"), ("", b"caf\xe9", None)],
)
def test_texts_of_a_form_are_of_its_charset(charset, sent, read):
    body = b'--y\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n--y--\r\n' % (sent, sent)

    async def receive():
        return {"type": "http.request", "body": body}

    kind = f"multipart/form-data; boundary=y{charset}"
    request = Request({"type": "http", "headers": [(b"content-type", kind.encode())]}, receive)
    served = SimpleNamespace(spec=ServeSpec(), predictor=SimpleNamespace(columns={"text": None}))
    if read:
        assert asyncio.run(read_form(request, 1000, served)) == [{read: read}]
    else:
        with pytest.raises(HttpError, match=r"not utf-8: .*0xe9") as told:
            asyncio.run(read_form(request, 1000, served))
        assert told.value.status_code == 400


def test_forms_that_are_none(app, png):
    files = [("photo", ("a.png", png)), ("photo", ("b.png", png)), ("text", (None, "one"))]
    assert "photo 2, text 1" in ask(app, "POST", PREDICT, files=files).json()["error"]["message"]
    for body in (b"", b"--x\r\n", b"--y\r\nContent-Disposition: form-data\r\n\r\nz\r\n--y--"):
        response = ask(app, "POST", PREDICT, content=body, headers={"content-type": "multipart/form-data; boundary=y"})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "malformed_form"
    assert ask(app, "POST", PREDICT, content=b"x", headers={"content-type": "multipart/form-data"}).status_code == 400
    slow = ask(app, "POST", PREDICT, content=b"x", headers={"content-type": "multipart/form-data; boundary=y; charset=punycode"})
    assert "charset" in slow.json()["error"]["message"]
    assert ask(app, "POST", PREDICT, files={"photo": ("a.png", b"x" * 11 * 2**20)}).status_code == 413


def test_a_damaged_file_is_named(app):
    response = ask(app, "POST", PREDICT, files={"photo": ("a.png", b"not a picture")})
    assert response.status_code == 400
    assert response.json()["error"]["where"] == "instances.0.photo"


def test_urls_are_off_unless_allowed(app):
    response = ask(app, "POST", PREDICT, json={"instances": [{"photo": "https://example.com/cat.png"}]})
    assert response.status_code == 400
    assert "serve.urls.allow" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "url",
    [
        *("https://images.example.com/cat.png", "http://images.example.com/x?y=z", "https://bucket.example.com/photos/cat.png"),
        *("https://IMAGES.example.com:443/", "http://local.example.com:8080/ok/a b".replace(" ", "_")),
    ],
)
def test_allowed(url):
    check(url, ["images.example.com", "https://bucket.example.com/photos/", "http://local.example.com:8080/ok/"])


@pytest.mark.parametrize(
    "url",
    [
        *("https://example.com/cat.png", "https://images.example.com.evil.com/", "https://evil.com/images.example.com"),
        *("https://images.example.com@evil.com/", "https://evil.com#images.example.com", "https://images.example.com:22/"),
        *("https://bucket.example.com/private/cat.png", "https://bucket.example.com/photos/../private", "http://bucket.example.com/photos/cat.png"),
        *("https://bucket.example.com/photos/%2e%2e/private", "https://bucket.example.com/photos/..%2fprivate", "https://[::1]/", "https://[/"),
        *("https://images.example.com\\@evil.com/", "https://images.example.com/\r\nx: y", "https://", "https://images.example.com:99999/"),
    ],
)
def test_not_allowed(url):
    with pytest.raises(DataError):
        check(url, ["images.example.com", "https://bucket.example.com/photos/"])


@pytest.mark.parametrize("entry", ["", "*.example.com", "https://example.com", "https://example.com/photos", "example.com/photos/"])
def test_entries_that_allow_more_than_they_seem_to_are_refused(entry):
    with pytest.raises(SpecError, match="neither a host nor a prefix"):
        parse({"model": {}, "data": {"train": "x", "inputs": [], "target": "y"}, "serve": {"urls": {"allow": [entry]}}})


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1"),
        *("::1", "::", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
    ],
)
def test_addresses_that_are_not_public(address):
    assert not public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses(address):
    assert public(address)


@pytest.fixture(scope="module")
def host(png):
    """A real host of files."""

    async def slow(request):
        await asyncio.sleep(1.5)
        return Response(png)

    routes = [
        Route("/cat.png", lambda request: Response(png)),
        Route("/moved", lambda request: RedirectResponse("http://169.254.169.254/")),
        Route("/large", lambda request: Response(b"x" * 5000)),
        Route("/slow", slow),
    ]
    with served(Starlette(routes=routes)) as place:
        yield place


@pytest.fixture
def loopback_counts_as_public(monkeypatch):
    monkeypatch.setattr(urls, "public", lambda address: ip_address(address).is_loopback)


def fetch(host, *paths, **spec):
    fetcher = Fetcher(UrlsSpec(allow=[f"http://{host}/"], **spec))
    return asyncio.run(fetcher.fetch([{"photo": f"http://{host}{path}", "text": "http://stays"} for path in paths], ["photo"]))


def test_files_are_fetched(host, png, loopback_counts_as_public):
    assert fetch(host, "/cat.png", "/cat.png") == [{"photo": png, "text": "http://stays"}] * 2


@pytest.mark.parametrize(
    ("path", "message", "where", "spec"),
    [
        ("/moved", "redirects", "1.photo", {}),
        ("/none", "404", "1.photo", {}),
        ("/large", "more than 4096 bytes", "1.photo", {"max": "4KiB"}),
        ("/slow", "longer than 0.3 s", "", {"timeout": "300ms"}),
    ],
)
def test_files_that_cant_be_had(host, path, message, where, spec, loopback_counts_as_public):
    start = time.monotonic()
    with pytest.raises(DataError, match=message) as caught:
        fetch(host, "/cat.png", path, **spec)
    assert caught.value.where == where
    assert time.monotonic() - start < 1.4 or not spec


def test_the_limit_is_of_all_files_together(host, loopback_counts_as_public):
    fetch(host, "/large", max="6KiB")
    with pytest.raises(DataError, match="more than"):
        fetch(host, "/large", "/large", max="6KiB")


def test_private_addresses_are_never_called(host):
    with pytest.raises(DataError, match="not public") as caught:
        fetch(host, "/cat.png")
    assert caught.value.where == "0.photo"


def test_a_name_is_resolved_once_and_that_address_called(host, png, monkeypatch, loopback_counts_as_public):
    asked = []

    async def resolve(self, name, port, **options):
        asked.append(name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1" if len(asked) == 1 else "10.0.0.1", port))]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", resolve)
    port = host.rpartition(":")[2]
    fetcher = Fetcher(UrlsSpec(allow=[f"http://images.example.com:{port}/"]))
    assert asyncio.run(fetcher.fetch([{"photo": f"http://images.example.com:{port}/cat.png"}], ["photo"])) == [{"photo": png}]
    assert asked == ["images.example.com"]


@pytest.fixture
def fetch_https(png, tls, monkeypatch, loopback_counts_as_public):
    """fetch_https(name, trust) → what is fetched from a host whose certificate is for images.example.com, under this name."""

    async def resolve(self, name, port, **options):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", resolve)
    routes = [Route("/cat.png", lambda request: Response(png))]
    with served(Starlette(routes=routes), ssl_certfile=tls["certificate"], ssl_keyfile=tls["key"]) as place:

        def fetch(name, trust):
            host = f"https://{name}:{place.rpartition(':')[2]}/"
            fetcher = Fetcher(UrlsSpec(allow=[host]), trust)
            return asyncio.run(fetcher.fetch([{"photo": f"{host}cat.png"}], ["photo"]))

        yield fetch


def test_a_host_must_prove_its_name(fetch_https, tls, png):
    trust = ssl.create_default_context(cafile=tls["certificate"])
    assert fetch_https("images.example.com", trust) == [{"photo": png}]
    for name, trusted in (("other.example.com", trust), ("images.example.com", None)):
        with pytest.raises(DataError, match="can't be reached"):
            fetch_https(name, trusted)
