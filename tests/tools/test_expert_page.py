"""The page of an expert report does in a real browser what it promises; no browser, no tests."""

from pathlib import Path

import pytest

from tests.browser import LAPTOP, PHONE, Browser, Keys
from tests.tools.report_runs import run_contents
from tools.expert_report.contents import RunContents
from tools.expert_report.page import write_page

WEIRD = (
    "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>"
    " & \" ' \u202e \ud800 {{data}} \U0001f642"
)
TIP = ".tooltip"
LOADS = "#activity .heatmap canvas"


@pytest.fixture(scope="module")
def mh_moe() -> RunContents:
    return run_contents("mh_moe")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, mh_moe: RunContents) -> Path:
    path = tmp_path_factory.mktemp("page") / "one.html"
    write_page([mh_moe], path)
    return path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, mh_moe: RunContents) -> Path:
    path = tmp_path_factory.mktemp("pages") / "two.html"
    sparse = run_contents("sparse", heads=1, experts=13, choices=1, seed=1)
    write_page([mh_moe, sparse], path)
    return path


def picture(browser: Browser, selector: str) -> str:
    """What a canvas shows."""
    return browser.run("return document.querySelector(arguments[0]).toDataURL()", selector)


def pick(browser: Browser, section: str, label: str) -> None:
    """Press the radio button, or choose the option, of a section by its text."""
    browser.run(
        "for (const l of document.querySelectorAll(`#${arguments[0]} .segments label`))"
        " if (l.textContent === arguments[1]) { l.click(); return; }"
        "for (const s of document.querySelectorAll(`#${arguments[0]} select`))"
        " for (const o of s.options) if (o.textContent === arguments[1])"
        "  { s.value = o.value; s.dispatchEvent(new Event('change')); return; }"
        "throw new Error('no choice ' + arguments[1])",
        section,
        label,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "size", "dark"),
    [("one", LAPTOP, False), ("two", LAPTOP, True), ("one", PHONE, True), ("two", PHONE, False)],
    ids=["one laptop light", "two laptop dark", "one phone dark", "two phone light"],
)
def test_a_page_is_quiet_and_fits_its_window(
    browser: Browser,
    name: str,
    size: tuple[int, int],
    dark: bool,
    request: pytest.FixtureRequest,
):
    browser.open(request.getfixturevalue(name), size=size, dark=dark)
    assert len(browser.all("main > section")) == 11
    assert browser.overflow() == 0
    assert browser.run("return document.documentElement.dataset.theme") == (
        "dark" if dark else "light"
    )
    browser.shot(f"{name}_{size[0]}_{'dark' if dark else 'light'}", whole=True)
    browser.assert_quiet()


def test_hovering_a_cell_tells_its_count_and_share(
    browser: Browser, one: Path, mh_moe: RunContents
):
    browser.open(one)
    width, left = browser.run(
        "const c = document.querySelector(arguments[0]); return [c.clientWidth, c.clientHeight]",
        LOADS,
    )
    browser.hover(LOADS, width - 12, left - 12)
    said = browser.text(TIP)
    counts = next(c for c in mh_moe.layers[-1].counts if c.kind == "image")
    assert "block 4, expert 6" in said
    assert f"{counts.count[-1]:,}" in said
    assert f"{100 * counts.count[-1] / sum(counts.count):.1f} %" in said
    assert "14.3 %" in said, "an even share of seven experts"
    browser.shot("hover")
    browser.hover("h1", 2, 2)
    assert not browser.one(TIP).is_displayed()
    browser.assert_quiet()


def test_arrow_keys_move_through_a_heatmap_and_are_spoken(browser: Browser, one: Path):
    browser.open(one)
    browser.tab_to(LOADS)
    heard = [browser.text("[aria-live]")]
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.END, Keys.PAGE_UP, Keys.ARROW_UP):
        browser.press(key)
        heard.append(browser.text("[aria-live]"))
    places = [words.split(".")[0] for words in heard]
    assert places == [
        "block 0, expert 0", "block 0, expert 1", "block 2, expert 1",
        "block 2, expert 6", "block 0, expert 6", "block 0, expert 6",
    ]  # fmt: skip
    browser.press(Keys.ESCAPE)
    assert not browser.one(TIP).is_displayed()


def test_the_table_of_a_heatmap_holds_the_counts(browser: Browser, one: Path, mh_moe: RunContents):
    browser.open(one)
    browser.click("#activity details summary")
    cells = browser.wait(lambda: browser.all("#activity details td"))
    counts = [next(c for c in layer.counts if c.kind == "image").count for layer in mh_moe.layers]
    assert [int(cell.text.replace(",", "")) for cell in cells] == [n for row in counts for n in row]


def test_choosing_a_kind_shows_other_counts(browser: Browser, one: Path):
    browser.open(one)
    assert len(browser.all(LOADS)) == 2, "image and text side by side"
    image = picture(browser, LOADS)
    pick(browser, "activity", "text")
    assert len(browser.all(LOADS)) == 1
    assert picture(browser, LOADS) != image
    pick(browser, "activity", "language")
    assert [h.text.split("\n")[0][:2] for h in browser.all("#activity .title")] == [
        "en",
        "de",
        "fr",
    ]
    browser.assert_quiet()


def test_the_sweep_shows_ours_beside_chance_and_the_paper(
    browser: Browser, two: Path, mh_moe: RunContents
):
    browser.open(two)
    summary = browser.text("#summary")
    assert "at tau 0.1429the paper has 90.71 %" in summary
    assert "the paper has 8.33 %" in summary
    shown = browser.text("#sweep")
    for words in ("90.71 %", "8.33 %", "half of an even share", "tau of mh_moe = 0.1429"):
        assert words in shown
    first = mh_moe.activation[0]
    assert f"{100 * first.value:.2f} %" in shown
    assert f"{100 * first.random:.2f} %" in shown
    browser.hover("#sweep svg[role=img]", 60, 100)
    assert "threshold tau 0.001" in browser.text(TIP)
    assert browser.text(TIP).count("random routing") == 2
    browser.press(Keys.ESCAPE)
    pick(browser, "sweep", "token")
    assert "tau of sparse" not in browser.text("#sweep"), "one head: nothing to tell apart"
    assert "tau of mh_moe = 0.7143" in browser.text("#sweep")


def test_arrow_keys_move_along_a_chart(browser: Browser, one: Path):
    browser.open(one)
    browser.tab_to("#training svg[role=img]")
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert browser.text("[aria-live]").startswith("step 150")


def test_patches_follow_head_layer_colouring_and_checkpoint(
    browser: Browser, one: Path, mh_moe: RunContents
):
    browser.open(one)
    canvas = "#images .overlay canvas"
    seen = [picture(browser, canvas)]
    for label in ("1", "block 0", "diversity", "mean of all"):
        pick(browser, "images", label)
        seen.append(picture(browser, canvas))
    assert len(set(seen)) == 5
    slider = "#images input[type=range]"
    browser.choose(slider, "0")
    assert picture(browser, canvas) not in seen
    assert "step 100" in browser.text("#images .sliding")
    pick(browser, "images", "expert")
    browser.hover(canvas, 20, 20)
    experts = mh_moe.images[0].experts[-1][0]
    for head, chosen in enumerate(experts):
        assert f"head {head}{', '.join(map(str, chosen))}" in browser.text(TIP)
    browser.assert_quiet()


def test_pressing_an_expert_leaves_its_patches_alone(browser: Browser, one: Path):
    browser.open(one)
    canvas = "#images .overlay canvas"
    before = picture(browser, canvas)
    browser.click("#images .chips button")
    assert browser.one("#images .chips button").get_attribute("aria-pressed") == "true"
    assert picture(browser, canvas) != before
    browser.click("#images .chips button")
    assert picture(browser, canvas) == before


def test_another_image_is_another_picture(browser: Browser, one: Path):
    browser.open(one)
    browser.click("#images .thumbs button:nth-child(2)")
    assert "picture 1" in browser.text("#images .caption")
    assert (
        browser.one("#images .thumbs button:nth-child(2)").get_attribute("aria-pressed") == "true"
    )


def test_hovering_and_stepping_to_a_word_show_where_its_sub_tokens_went(
    browser: Browser, one: Path, mh_moe: RunContents
):
    browser.open(one)
    tokens = mh_moe.sentences[0].tokens
    browser.hover("#sentences .said:nth-child(4)", 8, 8)
    assert browser.text("#sentences .went .title").startswith("circle")
    browser.run("document.querySelector('#sentences .said:nth-child(4)').focus()")
    browser.press(Keys.ARROW_RIGHT)
    assert browser.text("#sentences .went .title").startswith("is")
    went = "#sentences .went canvas"
    browser.hover(went, 70, 45)
    assert "block 0, head 0" in browser.text(TIP)
    assert ", ".join(map(str, tokens[4].experts[0][0])) in browser.text(TIP)
    small = [s.text for s in browser.all("#sentences .piece small")]
    assert small == [str(token.experts[-1][0][0]) for token in tokens]
    pick(browser, "sentences", "1")
    pick(browser, "sentences", "block 2")
    small = [s.text for s in browser.all("#sentences .piece small")]
    assert small == [str(token.experts[1][1][0]) for token in tokens]
    pick(browser, "sentences", "diversity")
    small = [s.text for s in browser.all("#sentences .piece small")]
    assert small == [str(token.diversity[1]) for token in tokens]


def test_a_word_cut_in_pieces_shows_each_piece(browser: Browser, one: Path):
    browser.open(one)
    pick(browser, "sentences", "de: ein Vierundzwanzigstel")
    browser.run("document.querySelector('#sentences .said:nth-child(3)').focus()")
    pieces = [h.text.removesuffix("word") for h in browser.all("#sentences .went .title")]
    assert pieces == ["Vieru", "ndzwanzigstel"]


def test_pressing_a_word_of_the_list_shows_its_experts(browser: Browser, one: Path):
    browser.open(one)
    browser.click("#words .row:nth-child(3)")
    word = browser.text("#words .row:nth-child(3) .name").removesuffix("en")
    assert browser.text("#words .split .title").startswith(f"Where “{word}” goes")
    before = browser.text("#words .row:nth-child(1) .name")
    pick(browser, "words", "spread least")
    assert browser.text("#words .row:nth-child(1) .name") != before


def test_choices_of_the_other_sections_change_their_figures(browser: Browser, two: Path):
    browser.open(two)
    heads = picture(browser, "#together .heatmap canvas")
    pick(browser, "together", "block 0")
    assert picture(browser, "#together .heatmap canvas") != heads
    assert not browser.all("#training .heatmap")
    pick(browser, "training", "block 2")
    assert len(browser.all("#training .heatmap")) == 2
    browser.click("#training .panel details summary")
    assert browser.wait(lambda: browser.all("#training details table"))
    browser.assert_quiet()


def test_the_button_changes_the_theme_and_what_is_drawn(browser: Browser, one: Path):
    browser.open(one)
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = browser.run(ground), picture(browser, LOADS)
    browser.click("button.theme")
    dark = browser.run(ground), picture(browser, LOADS)
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    browser.click("button.theme")
    assert (browser.run(ground), picture(browser, LOADS)) == light


def test_two_runs_stand_side_by_side_on_one_scale(browser: Browser, two: Path):
    browser.open(two)
    left, right = (side.rect for side in browser.all("#activity .sides:first-child .side"))
    assert (left["y"], left["width"]) == (right["y"], right["width"])
    assert right["x"] > left["x"] + left["width"]
    assert len(browser.all("#activity .legend")) == 1
    assert browser.text("h1") == "mh_moe against sparse"
    assert "Every token of this run goes to one expert" in browser.text("#words")
    browser.resize(PHONE)
    left, right = (side.rect for side in browser.all("#activity .sides:first-child .side"))
    assert right["y"] > left["y"], "below each other where it is narrow"


def test_everything_that_acts_can_be_reached_and_has_a_name(browser: Browser, two: Path):
    browser.open(two)
    nameless = browser.run(
        "const name = (e) => e.getAttribute('aria-label') || e.textContent.trim()"
        " || e.labels?.[0]?.textContent;"
        "return [...document.querySelectorAll('button, a, input, select, canvas[tabindex],"
        " svg[tabindex], [role=group], [role=region]')].filter((e) => !name(e))"
        ".map((e) => e.outerHTML)"
    )
    assert nameless == []
    browser.press(Keys.TAB)
    assert browser.run("return document.activeElement.textContent") == "Skip to the report"
    ids = browser.run("return [...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


def test_text_of_captions_stays_text(browser: Browser, tmp_path: Path):
    write_page([run_contents(f"a {WEIRD}", extra=WEIRD)], tmp_path / "weird.html")
    browser.open(tmp_path / "weird.html")
    shown = WEIRD.replace("\ud800", "?")
    assert browser.run("return document.title") == f"Experts of a {shown}"
    assert shown in browser.text("h1")
    assert browser.text("#images .caption p") == f"“{shown} picture 0”"
    assert browser.run("return document.querySelectorAll('script').length") == 2
    assert browser.overflow() == 0
    browser.assert_quiet()


LACKING = {
    "a decoder": {"images": 0},
    "no text": {"texts": False},
    "neither": {"texts": False, "images": 0},
    "one layer": {"layers": 1},
    "one expert": {"experts": 1, "heads": 1},
    "one step": {"steps": 1},
    "no training": {"steps": 0},
    "no sparse layer": {"layers": 0, "texts": False, "images": 0, "steps": 0},
    "one patch": {"grid": 1, "images": 1},
}


@pytest.mark.parametrize("sizes", LACKING.values(), ids=LACKING)
def test_a_page_does_without_parts_and_says_so(
    browser: Browser, tmp_path: Path, sizes: dict[str, int]
):
    write_page([run_contents("lacking", **sizes)], tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    missing = browser.text("#terms").partition("Not in this report")[2].replace(".", "")
    for part in ("images", "sentences"):
        assert bool(browser.all(f"#{part}")) != (part in missing.replace(",", " ").split())
    assert not {"NaN", "undefined", "Infinity", "[object"} & set(browser.text("main").split())
    browser.assert_quiet()


def test_a_full_run_stands_beside_one_that_lacks_everything(
    browser: Browser, tmp_path: Path, mh_moe: RunContents
):
    lacking = run_contents("lacking", texts=False, images=0, steps=0, heads=1, layers=1)
    for name, runs in (("first", [mh_moe, lacking]), ("last", [lacking, mh_moe])):
        write_page(runs, tmp_path / f"{name}.html")
        browser.open(tmp_path / f"{name}.html")
        assert "This image is not in this run" in browser.text("#images")
        assert "Not in this report" not in browser.text("#terms")
        browser.assert_quiet()


def test_a_large_net_stays_small_and_fluid(browser: Browser, tmp_path: Path):
    path = tmp_path / "large.html"
    run = run_contents("large", layers=24, experts=64, heads=8, choices=2, grid=14, images=2)
    write_page([run], path)
    assert path.stat().st_size < 6e6
    browser.open(path)
    browser.assert_quiet()
    moves = browser.run(
        "const c = document.querySelector(arguments[0]), b = c.getBoundingClientRect();"
        "const begin = performance.now();"
        "for (let i = 0; i < 200; i++) c.dispatchEvent(new PointerEvent('pointermove',"
        " {clientX: b.left + 100 + i, clientY: b.top + 100 + i / 2}));"
        "return (performance.now() - begin) / 200",
        LOADS,
    )
    assert moves < 16, "ms; a frame at 60 Hz"
    browser.shot("large")


def test_a_page_takes_one_run_or_two_of_different_names(tmp_path: Path, mh_moe: RunContents):
    for runs, words in (([], "but 0 were"), ([mh_moe] * 3, "but 3"), ([mh_moe] * 2, "'mh_moe'")):
        with pytest.raises(ValueError, match=words):
            write_page(runs, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
