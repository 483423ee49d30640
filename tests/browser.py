"""A headless Chromium for tests of pages that open from disk, or from a server of the test's.

    def test_a_page(browser: Browser, tmp_path):
        page = browser.open(tmp_path / "page.html", dark=True)
        page.hover("#chart", 40, 20)
        assert "3 of 7" in page.text(".tooltip")
        page.shot("chart_dark")
        page.assert_quiet()

The fixture `browser` is in `tests/conftest.py`; where no Chromium is installed, its tests are
skipped and say so. Screenshots are kept in `build/screenshots/`.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

__all__ = ["Browser", "Keys", "find_chromium"]

SHOTS = Path(__file__).parents[1] / "build" / "screenshots"
LAPTOP = (1366, 768)
PHONE = (400, 800)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",  # containers have a small one
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)


def find_chromium() -> tuple[str, str] | None:
    """Paths of the browser and of its driver, or None."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Browser:
    """One Chromium; each `open` shows another file in it."""

    def __init__(self, chromium: str, chromedriver: str):
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        options = Options()
        options.binary_location = chromium
        for flag in (*FLAGS, f"--user-data-dir={self._profile.name}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(chromedriver))
        self.driver.set_script_timeout(20)
        self._opened = ""

    def close(self) -> None:
        """End Chromium and remove its profile."""
        self.driver.quit()
        self._profile.cleanup()

    def cdp(self, command: str, **arguments: Any) -> dict[str, Any]:
        """A command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, arguments)

    def open(
        self,
        page: Path | str,
        size: tuple[int, int] = LAPTOP,
        dark: bool = False,
        reduced_motion: bool = True,
    ) -> "Browser":
        """Show a file or an address in a window of `size` CSS pixels to a person of this taste."""
        self.driver.get("about:blank")
        self._logs("browser"), self._logs("performance")
        self.resize(size)
        motion = "reduce" if reduced_motion else "no-preference"
        scheme = "dark" if dark else "light"
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        self.cdp(
            "Emulation.setEmulatedMedia",
            features=[{"name": name, "value": value} for name, value in features.items()],
        )
        self._opened = page if isinstance(page, str) else page.resolve().as_uri()
        self.driver.get(self._opened)
        return self

    def resize(self, size: tuple[int, int]) -> None:
        """Make the window `size` CSS pixels large, the narrowest of phones included."""
        width, height = size
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    # -- looking ------------------------------------------------------------------------------

    def all(self, selector: str) -> list[WebElement]:
        """Every element of a CSS selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        """The first element of a CSS selector."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """The text of the first element, shown or not."""
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a piece of JavaScript returns."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, holds: Callable[[], Any], seconds: float = 5.0) -> Any:
        """Wait until something is true; returns it."""
        end = time.monotonic() + seconds
        while not (found := holds()):
            assert time.monotonic() < end, f"still not so after {seconds} s"
            time.sleep(0.02)
        return found

    def overflow(self) -> int:
        """CSS pixels by which the page is wider than its window."""
        return self.run(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )

    # -- acting -------------------------------------------------------------------------------

    def show(self, selector: str) -> WebElement:
        """Scroll to an element."""
        element = self.one(selector)
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        return element

    def hover(self, selector: str, x: float, y: float) -> None:
        """Move the pointer to CSS pixels from an element's left upper corner."""
        element = self.show(selector)
        box = self.run(
            "const b = arguments[0].getBoundingClientRect(); return [b.left, b.top]", element
        )
        self.cdp("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + x, y=box[1] + y)

    def click(self, selector: str) -> None:
        """Click on an element."""
        self.show(selector).click()

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a <select>, or move a slider, as a person's input would."""
        self.run(
            "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
            "for (const n of ['input', 'change']) e.dispatchEvent(new Event(n, {bubbles: true}))",
            selector,
            value,
        )

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, wherever the focus is."""
        actions = ActionChains(self.driver, duration=0)
        for key in keys:
            actions.send_keys(key)
        actions.perform()

    def tab_to(self, selector: str, presses: int = 120) -> None:
        """Press the tabulator from where the focus is until it reaches an element."""
        element = self.one(selector)
        for _ in range(presses):
            self.press(Keys.TAB)
            if self.driver.switch_to.active_element == element:
                return
        raise AssertionError(f"{selector} is not reached with {presses} presses of the tabulator")

    # -- judging ------------------------------------------------------------------------------

    def complaints(self) -> list[str]:
        """Errors and warnings in the console since the page was opened, or since last asked."""
        return [
            entry["message"]
            for entry in self._logs("browser")
            if entry["level"] in ("SEVERE", "WARNING")
        ]

    def requests(self) -> list[str]:
        """Addresses asked for since the page was opened, other than its own and `data:`."""
        events = [json.loads(entry["message"])["message"] for entry in self._logs("performance")]
        urls = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [u for u in urls if not u.startswith((self._opened, "data:", "blob:", "about:"))]

    def assert_quiet(self) -> None:
        """The console is empty of complaints and nothing was asked of any network."""
        assert (self.complaints(), self.requests()) == ([], [])

    def shot(self, name: str, whole: bool = False) -> Path:
        """Keep a picture of the window, or of the whole page, as `build/screenshots/<name>.png`."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        path = SHOTS / f"{name}.png"
        if not whole:
            self.driver.save_screenshot(str(path))
            return path
        width, height, tall = self.run(
            "return [innerWidth, innerHeight, document.documentElement.scrollHeight]"
        )
        self.resize((width, tall))
        self.driver.save_screenshot(str(path))
        self.resize((width, height))
        return path

    def _logs(self, kind: str) -> list[dict[str, Any]]:
        return self.driver.get_log(kind)
