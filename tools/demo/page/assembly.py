"""Puts the page together. What shows experts is the script of the expert report."""

from importlib.resources import files
from typing import NamedTuple

from tools.expert_report.page.assembly import digest, filled, joined

REPORT = "tools.expert_report.page"
SHARED = ("10_dom", "20_colour", "30_tooltip", "40_heatmap", "60_parts", "65_images")
SHARED = (*SHARED, "66_sentences")
"""Scripts of the report."""


class Page(NamedTuple):
    """The document and what it may do."""

    text: str
    policy: str
    """Its content security policy: its own style and script, its own server."""


def page() -> Page:
    """The page, the same for every model: it asks the server what to show."""
    own, report = files(__package__ or "tools.demo.page"), files(REPORT)
    scripts = sorted((own / "scripts").iterdir(), key=lambda script: script.name)
    shared = [report / "scripts" / f"{name}.js" for name in SHARED]
    script = joined([scripts[0], *shared, *scripts[1:]])
    styles = [report / "page.css", own / "demo.css"]
    style = "\n".join(part.read_text(encoding="utf-8") for part in styles)
    frame = (own / "demo.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {digest(script)}; style-src {digest(style)}; "
        "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return Page(filled(frame, {"style": style, "script": script}), policy)
