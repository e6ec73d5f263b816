"""The pages: how they are sent, and used in a real browser."""

import base64
import hashlib
import io
import re
import shutil

import httpx
import pytest
from PIL import Image
from serving import KEY, ask, served

from lc_ray.serve import auth
from lc_ray.serve.endpoint import Models, asgi

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
browser_only = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def app(fused, tiny_language, predictor, endpoint):
    found = [endpoint(one) for one in (fused, tiny_language, predictor)]
    return asgi(Models(found, found[0].spec), {auth.digest(KEY): "test"})


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_needs_no_key_and_may_run_nothing_but_its_own_parts(app, path):
    response = ask(app, "GET", path, key="")
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert response.status_code == 200
    assert policy["default-src"] == "'none'"
    for kind in ("script", "style"):
        parts = re.findall(rf"<{kind}>(.*?)</{kind}>", response.text, re.DOTALL)
        hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" for part in parts]
        assert parts
        assert policy[f"{kind}-src"] == " ".join(hashes)
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", response.text)
    assert "tiny" not in response.text, "a page tells nothing of the models"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--use-fake-device-for-media-stream"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(app):
    with served(app) as address:
        yield f"http://{address}"


@pytest.fixture
def cut(app):
    """Answers of models break off: their last byte, or all but the first event of a stream, never comes."""

    async def cutting(scope, receive, send):
        sent = []

        async def first(message):
            sent.append(message)
            if len(sent) <= 2:
                await send(message | ({"body": message["body"][:-1], "more_body": True} if "body" in message else {}))

        await app(scope, receive, first if scope["method"] == "POST" else send)

    with served(cutting) as address:
        yield f"http://{address}"


@pytest.fixture
def opened(browser, url):
    """opened(path, key, url) → a page, in a tab of its own. No test may leave an error in its console."""
    pages = []

    def opened(path="/", key=KEY, url=url):
        context = browser.new_context(permissions=["microphone"])
        page = context.new_page()
        page.set_default_timeout(20_000)
        complaints = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if "Content Security Policy" in said.text else None)
        pages.append((context, complaints))
        page.goto(url + path)
        page.get_by_label("Whoever started it").fill(key)
        page.get_by_role("button", name="Continue").click()
        return page

    yield opened
    for context, complaints in pages:
        context.close()
        assert complaints == []


def choose(page, model):
    page.get_by_label("Model", exact=True).select_option(model)


@browser_only
def test_a_text_is_typed_and_its_probabilities_appear(opened, predictor):
    page = opened()
    choose(page, "tiny")
    page.get_by_label("text", exact=True).fill("good day")
    page.keyboard.press("Control+Enter")
    answer = page.get_by_role("region", name="Answer")
    expected = predictor.predict(["good day"])[0]
    answer.get_by_text(predictor.artifact.digest, exact=True).wait_for()
    assert answer.locator(".gist").inner_text() == expected["label"]
    ranked = sorted(expected["probabilities"].items(), key=lambda pair: -pair[1])
    assert answer.locator("dt").all_inner_texts() == [label for label, _ in ranked]
    assert answer.locator(".share").all_inner_texts() == [f"{100 * share:.1f} %" for _, share in ranked]
    assert re.search(r"\d+ ms", answer.inner_text())


@browser_only
def test_a_picture_is_chosen_and_a_sound_dropped(opened, png, wav):
    page = opened()
    page.get_by_label("Choose a picture").set_input_files({"name": "cat.png", "mimeType": "image/png", "buffer": png})
    page.get_by_alt_text("The picture that will be sent").wait_for()
    coded = base64.b64encode(wav).decode()
    page.evaluate(
        """([selector, coded]) => {
            const data = new DataTransfer();
            data.items.add(new File([Uint8Array.from(atob(coded), (c) => c.charCodeAt(0))], "bell.wav", { type: "audio/wav" }));
            document.querySelector(selector).dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
        }""",
        [".drop:has(input[accept='audio/*'])", coded],
    )
    page.get_by_text("bell.wav").wait_for()
    with page.expect_request("**/v1/models/fused:predict") as asked:
        page.get_by_role("button", name="Ask").click()
    sent = asked.value.post_data_json["instances"][0]
    assert base64.b64decode(sent["photo"].partition(",")[2]) == png
    assert base64.b64decode(sent["sound"].partition(",")[2]) == wav
    page.get_by_role("region", name="Answer").locator(".gist").wait_for()


@browser_only
def test_a_sound_is_recorded(opened):
    page = opened()
    page.get_by_role("button", name="Record").click()
    page.get_by_role("button", name="Stop").wait_for()
    page.wait_for_timeout(400)
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Remove the sound").wait_for()
    with page.expect_response("**/v1/models/fused:predict") as answered:
        page.get_by_role("button", name="Ask").click()
    assert answered.value.status == 200
    assert base64.b64decode(answered.value.request.post_data_json["instances"][0]["sound"].partition(",")[2])[8:12] == b"WAVE"


@browser_only
def test_a_large_picture_is_made_smaller(opened):
    file = io.BytesIO()
    Image.new("L", (3200, 1000), 128).save(file, "BMP")
    page = opened()
    page.get_by_label("Choose a picture").set_input_files({"name": "large.bmp", "mimeType": "image/bmp", "buffer": file.getvalue()})
    page.get_by_text("sent as a JPEG of 1600 × 500").wait_for()


@browser_only
def test_what_is_wrong_is_said_at_its_field(opened):
    page = opened()
    page.get_by_label("Choose a picture").set_input_files({"name": "cat.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.get_by_role("button", name="Ask").click()
    page.locator(".wrong", has_text="Not an image of a known format.").wait_for()
    assert page.get_by_role("region", name="Answer").get_by_role("alert").inner_text() == "Not an image of a known format."


@browser_only
def test_a_wrong_key_is_refused_and_a_right_one_kept_until_it_is_forgotten(opened):
    page = opened(key="guess")
    page.get_by_text("This key is not valid.").wait_for()
    page.get_by_label("Whoever started it").fill(KEY)
    page.keyboard.press("Enter")
    page.get_by_label("Model").wait_for()
    page.reload()
    page.get_by_label("Model").wait_for()
    page.get_by_role("button", name="Forget key").click()
    page.get_by_label("Whoever started it").wait_for()


@browser_only
def test_a_chat_streams_and_goes_on(opened, tiny_language):
    page = opened()
    choose(page, "talk")
    for turn in range(2):
        page.get_by_label("Message").fill("Hello")
        with page.expect_request("**/v1/chat/completions") as asked:
            page.keyboard.press("Enter")
        sent = asked.value.post_data_json
        assert sent["stream"] is True
        assert [message["role"] for message in sent["messages"]] == ["user", "assistant"] * turn + ["user"]
        page.get_by_role("button", name="Send").wait_for()
        assert page.locator(".assistant").nth(turn).inner_text()
    assert tiny_language.artifact.digest in page.get_by_role("status").inner_text()


@browser_only
@pytest.mark.parametrize(("model", "label", "button"), [("tiny", "text", "Ask"), ("talk", "Message", "Send")])
def test_an_answer_that_breaks_off_is_told_and_the_next_can_be_asked_for(opened, cut, model, label, button):
    page = opened(url=cut)
    choose(page, model)
    for _ in range(2):
        page.get_by_label(label, exact=True).fill("good day")
        with page.expect_request(lambda request: request.method == "POST"):
            page.get_by_role("button", name=button).click()
        page.get_by_text("The answer broke off.").last.wait_for()


@browser_only
@pytest.mark.parametrize(("text", "shown"), [("👍 Ann  in Rome.", "👍 Annper in Romeloc."), ('["👍", "Ann", "in", "Rome."]', "Annper Romeloc")])
def test_entities_are_marked_in_the_text(opened, text, shown):
    page = opened()
    choose(page, "tiny")
    found = [{"type": kind, "text": said, "start": at, "end": at + len(said)} for kind, said, at in (("per", "Ann", 2), ("loc", "Rome", 10))]
    answer = {"predictions": [{"entities": found, "words": ["👍", "Ann", "in", "Rome", "."], "tags": list("OOOOO")}], "model": "tiny", "version": "1"}
    page.route("**/v1/models/tiny:predict", lambda route: route.fulfill(json=answer))
    page.get_by_label("text", exact=True).fill(text)
    page.get_by_role("button", name="Ask").click()
    assert page.locator(".words").inner_text() == shown


@browser_only
def test_the_reference_shows_every_operation(opened, url):
    page = opened("/docs")
    page.get_by_role("heading", name="Reference").wait_for()
    paths = httpx.get(f"{url}/openapi.json", headers={"authorization": f"Bearer {KEY}"}).json()["paths"]
    assert sorted(page.locator(".path").all_inner_texts()) == sorted(paths)
    page.get_by_text("/v1/models/fused:predict", exact=True).click()
    shown = page.locator("details[open]").inner_text()
    assert "photo?: string | object (base64 of image/*) | null" in shown
    assert "curl http://127.0.0.1" in shown
    assert "Retry-After" in shown


@browser_only
def test_pages_fit_a_phone(opened):
    page = opened()
    page.set_viewport_size({"width": 360, "height": 720})
    for model in ("fused", "talk", "tiny"):
        choose(page, model)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
