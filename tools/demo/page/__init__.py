"""The page: one document with its style and script, which asks nobody but its own server."""

from tools.demo.page.assembly import Page, page

__all__ = ["Page", "page"]
