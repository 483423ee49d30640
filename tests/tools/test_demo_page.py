"""The demo's page does in a real browser what it promises; no browser, no tests."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mhmoe_mm
from tests.browser import LAPTOP, PHONE, Browser, Keys
from tests.datamodules.conftest import png
from tests.tools.demo_servers import dense, of_model, running
from tests.trained import Trained
from tools.demo.server import Server

QUESTION = "is the red star"
MAP = ".experts .heatmap canvas"
TIP = ".tooltip"


@pytest.fixture(scope="module")
def vqa(trained: Callable[[str], Trained]) -> Iterator[Server]:
    with running(of_model(trained("vqa"), "--max-upload", "0.02")) as server:
        yield server


@pytest.fixture(scope="module")
def retrieval(trained: Callable[[str], Trained]) -> Iterator[Server]:
    with running(of_model(trained("retrieval"))) as server:
        yield server


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    (tmp_path / "picture.png").write_bytes(png(3, side=31))
    return tmp_path / "picture.png"


def opened(browser: Browser, server: Server, **options) -> Browser:
    """The page, once it knows its model."""
    browser.open(server.url, **options)
    browser.wait(lambda: browser.all("form.ask"))
    return browser


def give(browser: Browser, picture: Path, place: int = 0) -> None:
    """Choose a file as the file dialog would."""
    browser.all(".chooser")[place].send_keys(str(picture))
    browser.wait(lambda: browser.all(".drop img")[place].is_displayed())


def drop(browser: Browser, data: bytes) -> None:
    """Drop a file on the first place."""
    browser.run(
        "const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));"
        "const moved = new DataTransfer();"
        "moved.items.add(new File([bytes], 'dropped.png', {type: 'image/png'}));"
        "const place = document.querySelector('.drop');"
        "for (const kind of ['dragenter', 'dragover', 'drop']) place.dispatchEvent("
        "new DragEvent(kind, {dataTransfer: moved, bubbles: true, cancelable: true}))",
        base64.b64encode(data).decode(),
    )
    browser.wait(lambda: browser.one(".drop img").is_displayed())


def type_in(browser: Browser, text: str) -> None:
    browser.one(".text").clear()
    browser.one(".text").send_keys(text)


def answered(browser: Browser) -> None:
    """Press the button and wait for the answer."""
    browser.run("for (const old of document.querySelectorAll('.answer')) old.remove()")
    browser.click(".main")
    browser.wait(lambda: browser.all(".answer") or browser.one(".error").is_displayed(), 20)
    assert browser.text(".error") == ""


@pytest.mark.parametrize(
    ("size", "dark"),
    [(LAPTOP, False), (LAPTOP, True), (PHONE, False)],
    ids=["laptop light", "laptop dark", "phone"],
)
def test_a_question_about_a_dropped_picture_is_answered_beside_its_experts(
    browser: Browser, vqa: Server, trained, picture: Path, size: tuple[int, int], dark: bool
):
    opened(browser, vqa, size=size, dark=dark)
    assert browser.text("h1") == "Ask about a picture"
    assert "unnamed/version_0" in browser.text(".top")
    assert browser.overflow() == 0
    drop(browser, picture.read_bytes())
    type_in(browser, QUESTION)
    answered(browser)
    model = mhmoe_mm.load(trained("vqa").checkpoint)
    wanted = model.answer(picture, QUESTION, top=5)
    assert browser.text(".headline") == wanted[0][0]
    assert [bar.text for bar in browser.all(".answer .name")] == [name for name, _ in wanted]
    shown = [bar.text for bar in browser.all(".answer .bar b")]
    assert shown == [f"{100 * score:.{1 if score < 0.0995 else 0}f} %" for _, score in wanted]
    assert "Answered in" in browser.text(".took")
    assert [piece.text.split("\n")[0] for piece in browser.all(".said .piece")] == [
        "<s>", *QUESTION.split(), "</s>",
    ]  # fmt: skip
    assert browser.overflow() == 0
    name = f"demo_{size[0]}_{'dark' if dark else 'light'}"
    browser.shot(name, whole=True)
    browser.assert_quiet()


def test_experts_and_their_weights_are_told_by_pointer_and_keys(
    browser: Browser, vqa: Server, picture: Path
):
    opened(browser, vqa)
    give(browser, picture)
    type_in(browser, QUESTION)
    answered(browser)
    browser.hover(MAP, 20, 20)
    told = browser.text(TIP)
    assert "patch in row 1, column 1" in told
    answer = browser.run(
        "return fetch('/ask', {method: 'POST', headers: {'Content-Type': 'application/json'}, "
        "body: JSON.stringify({mode: 'answer', images: [arguments[0]], text: arguments[1]})})"
        ".then((reply) => reply.json())",
        base64.b64encode(picture.read_bytes()).decode(), QUESTION,
    )  # fmt: skip
    (image,) = answer["images"]
    for head in range(2):
        experts, weights = image["experts"][-1][0][head], image["weights"][-1][0][head]
        pairs = [f"{e} ({w:.2f})" for e, w in zip(experts, weights, strict=True)]
        assert f"head {head}{', '.join(pairs)}" in told
    browser.hover("h1", 2, 2)
    assert not browser.one(TIP).is_displayed()
    browser.run("document.activeElement.blur()")
    browser.tab_to(MAP)
    browser.press(Keys.ARROW_RIGHT)
    assert "row 1, column 2" in browser.text("body > [aria-live]")
    browser.tab_to(".said[tabindex='0']")
    browser.press(Keys.ARROW_RIGHT)
    assert "</s>" in browser.text(".went .title"), "the tokenizer's words know no blanks between"
    assert browser.all(".said")[2].get_attribute("aria-pressed") == "true"
    browser.assert_quiet()


def test_another_head_colours_the_picture_anew(browser: Browser, vqa: Server, picture: Path):
    opened(browser, vqa)
    give(browser, picture)
    type_in(browser, QUESTION)
    answered(browser)

    def seen() -> tuple[str, list[str]]:
        colours = browser.run("return document.querySelector(arguments[0]).toDataURL()", MAP)
        return colours, [piece.text for piece in browser.all(".said .piece")]

    before = browser.wait(lambda: (now := seen()) and browser.one(MAP).size["width"] > 9 and now)
    labels = browser.all(".experts .segments label")
    next(label for label in labels if label.text == "1").click()
    after = seen()
    assert after[0] != before[0]
    assert after[1] != before[1]


def test_everything_can_be_done_with_the_keyboard(browser: Browser, vqa: Server, picture: Path):
    opened(browser, vqa)
    browser.tab_to(".chooser")
    give(browser, picture)
    browser.tab_to(".text")
    browser.press(*QUESTION, Keys.ENTER)
    browser.wait(lambda: browser.all(".answer"), 20)
    spoken = browser.text("body > [aria-live]")
    assert browser.text(".headline") in spoken
    assert "Answered in" in spoken
    assert browser.run(
        "return [...document.querySelectorAll('input, select, textarea')]"
        ".filter((one) => !one.labels.length).length"
    ) == 0, "every field has a label"  # fmt: skip


def test_refusals_are_shown_and_the_next_question_is_answered(
    browser: Browser, vqa: Server, picture: Path, tmp_path: Path
):
    (tmp_path / "broken.png").write_bytes(picture.read_bytes()[:-400])
    (tmp_path / "large.png").write_bytes(b"\x89PNG" + bytes(30_000))
    opened(browser, vqa)

    def refused(words: str) -> None:
        browser.click(".main")
        browser.wait(lambda: words in browser.text(".error"), 20)
        assert browser.one(".error").is_displayed()
        assert browser.one(".error").get_attribute("role") == "alert"

    refused("There is no picture")
    browser.all(".chooser")[0].send_keys(str(tmp_path / "broken.png"))
    type_in(browser, QUESTION)
    refused("damaged")
    browser.all(".chooser")[0].send_keys(str(tmp_path / "large.png"))
    browser.wait(lambda: "at most 0.1 MB are taken" in browser.text(".error"))
    give(browser, picture)
    type_in(browser, "is the <script>alert(1)</script> star")
    refused("The model's vocabulary does not have “<”, “script”, “>”")
    browser.shot("demo_refused")
    type_in(browser, QUESTION)
    answered(browser)
    assert not browser.one(".error").is_displayed()


def test_an_example_fills_the_form(browser: Browser, vqa: Server):
    opened(browser, vqa)
    browser.click(".example")
    browser.wait(lambda: browser.one(".drop img").is_displayed())
    assert browser.run("return document.querySelector('.text').value").startswith("is the")
    answered(browser)
    assert browser.text(".headline")
    assert not browser.all(".stale")
    browser.one(".text").send_keys("?")
    assert browser.all(".stale"), "the form asks something else than what was answered"
    browser.assert_quiet()


def test_captions_and_pictures_are_searched(browser: Browser, retrieval: Server, picture: Path):
    opened(browser, retrieval)
    give(browser, picture)
    type_in(browser, "a red star\nthe blue circle")
    answered(browser)
    captions = [bar.text for bar in browser.all(".answer .name")]
    assert sorted(captions) == ["a red star", "the blue circle"]
    browser.all(".answer .link")[1].click()
    words = [piece.text.split("\n")[0] for piece in browser.all(".said .piece")]
    assert " ".join(words[1:-1]) == captions[1]
    browser.shot("demo_captions", whole=True)
    labels = browser.all(".ask .segments label")
    next(label for label in labels if label.text == "Find pictures").click()
    type_in(browser, "a red star")
    browser.click(".main")
    found = browser.wait(lambda: browser.all(".gallery .found"), 20)
    assert len(found) == 5
    found[2].click()
    pressed = [one.get_attribute("aria-pressed") for one in browser.all(".experts .thumbs button")]
    assert pressed == ["false", "false", "true", "false", "false"]
    browser.shot("demo_images", whole=True)
    browser.assert_quiet()


def test_a_caption_is_written_with_the_beams_that_are_chosen(
    browser: Browser, trained, picture: Path
):
    model = mhmoe_mm.load(trained("captioning").checkpoint)
    with running(of_model(trained("captioning"), shards=False)) as server:
        opened(browser, server)
        give(browser, picture)
        answered(browser)
        assert browser.text(".headline") == (model.caption(picture) or "(nothing)")
        labels = browser.all(".ask .segments label")
        assert [label.text for label in labels] == ["1", "2", "3", "5"], "two are the model's own"
        asked: list[int | None] = []
        mode = server.demo.modes["caption"]

        def noted(request):
            asked.append(request.beams)
            return mode(request)

        server.demo.modes["caption"] = noted  # pyright: ignore[reportArgumentType]
        noted.form = mode.form  # pyright: ignore[reportFunctionMemberAccess]
        labels[3].click()
        answered(browser)
        assert asked == [5]


def test_two_pictures_have_two_places(browser: Browser, trained, picture: Path, tmp_path: Path):
    (tmp_path / "other.png").write_bytes(png(9, side=25))
    with running(of_model(trained("nlvr2"), shards=False)) as server:
        opened(browser, server)
        give(browser, picture)
        give(browser, tmp_path / "other.png", place=1)
        type_in(browser, "the red star is left")
        answered(browser)
        assert browser.text(".headline") in ("True", "False")
        assert len(browser.all(".experts .thumbs button")) == 2
        browser.shot("demo_two_pictures", whole=True)
        browser.assert_quiet()


def test_a_dense_model_says_that_it_has_no_experts(browser: Browser, tokenizer_path, picture: Path):
    with running(dense(tokenizer_path)) as server:
        opened(browser, server)
        give(browser, picture)
        type_in(browser, QUESTION)
        answered(browser)
        assert "no experts to show" in browser.text(".experts")
        assert not browser.all(".heatmap")
        browser.assert_quiet()


def test_a_server_that_is_gone_is_told(browser: Browser, vqa: Server, picture: Path):
    opened(browser, vqa)
    give(browser, picture)
    type_in(browser, QUESTION)
    gone = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.cdp("Network.emulateNetworkConditions", **gone)
    try:
        browser.click(".main")
        browser.wait(lambda: "is its program still running?" in browser.text(".error"))
    finally:
        browser.cdp("Network.emulateNetworkConditions", **gone | {"offline": False})
    browser.complaints()
    answered(browser)
