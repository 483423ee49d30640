"""The page over HTTP: three addresses to read, one to ask, and nothing of the disk.

    GET /           the page
    GET /about      what the model can be asked, JSON
    GET /example    images and a text to begin with, JSON
    POST /ask       the answer to a request, JSON; `{"error": "a sentence"}` where there is none

A page of another site must not use the model of whoever visits it: requests have to name this
machine as their host (else a foreign name could be pointed at it), questions have to come from the
page itself, and be JSON, which browsers send nowhere else unasked.
"""

import ipaddress
import json
import re
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tools.demo.asking import Demo, too_large
from tools.demo.page.assembly import Page
from tools.demo.request import RequestError

PATIENCE_S = 30
"""Seconds that a client may be silent."""
FAREWELL_S = 3
"""Seconds for which a request is read and forgotten, so that its sender sees the answer."""


class Server(ThreadingHTTPServer):
    """Serves a demo until it is shut down.

    Args:
        host, port: where it listens; port 0 takes any that is free.
        demo: what is asked.
        page: what is shown.

    Raises:
        OSError: the place is taken, or not of this machine.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, demo: Demo, page: Page):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.host, self.demo, self.page = host, demo, page
        super().__init__((host, port), Handler)
        found = ipaddress.ip_address(self.server_address[0])
        self.loopback = found.is_loopback
        """Whether only this machine reaches it."""

    @property
    def url(self) -> str:
        """Where the page is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_address[1]}/"

    def server_bind(self) -> None:
        """Without looking up the machine's name, which may ask the network."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.host, self.server_address[1]

    def is_own_host(self, header: str | None) -> bool:
        """Whether a request's Host is this machine. A name that somebody points here is none of
        ours; an address in figures cannot be pointed anywhere.
        """
        match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\[\]:/@\s]+))(?::\d{1,5})?", header or "")
        if not match:
            return False
        name = (match[1] or match[2]).lower().rstrip(".")
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            own = {"localhost", self.host.lower()}
            return name in (own if self.loopback else own | {socket.gethostname().lower()})
        return address.is_loopback or not self.loopback


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server
    server_version, sys_version = "mhmoe-mm", ""
    timeout = PATIENCE_S

    def do_GET(self) -> None:
        """The page and what it reads at its start."""
        demo = self.server.demo
        routes: dict[str, Callable[[], Any]] = {"/about": demo.about, "/example": demo.example}
        if not self._allowed():
            return
        if self.path == "/":
            page = self.server.page
            self._send(200, page.text.encode(), "text/html; charset=utf-8")
        elif self.path in routes:
            self._run(routes[self.path])
        else:
            self._refuse(404, "There is nothing at this address.")

    def do_POST(self) -> None:
        """A question."""
        if not self._allowed():
            return
        if self.path != "/ask":
            return self._refuse(404, "There is nothing at this address.")
        if self.headers.get_content_type() != "application/json":
            return self._refuse(415, "A question is sent as application/json.")
        body = self._body()
        if body is not None:
            self._run(lambda: self.server.demo.ask(body))

    def _allowed(self) -> bool:
        """Whether the request is meant for this server and sent by its page, or by no page.

        A link to the page itself may stand anywhere.
        """
        host = self.headers.get("Host")
        origin = self.headers.get("Origin", f"http://{host}")
        site = self.headers.get("Sec-Fetch-Site", "none")
        own = origin in (f"http://{host}", f"https://{host}") and site in ("same-origin", "none")
        if not self.server.is_own_host(host):
            self._refuse(403, "The request is for another host: open the address that was printed.")
        elif self.path != "/" and not own:
            self._refuse(403, "The request comes from a page of another site.")
        else:
            return True
        return False

    def _body(self) -> bytes | None:
        """What was sent; None where that was refused."""
        lengths = self.headers.get_all("Content-Length") or []
        if len(lengths) != 1 or "Transfer-Encoding" in self.headers:
            return self._refuse(411, "The request does not say how long it is.")
        if not re.fullmatch(r"\d{1,18}", lengths[0]):
            return self._refuse(400, "The length of the request is not a number.")
        length, most = int(lengths[0]), self.server.demo.most_body
        if length > most:
            return self._refuse(413, too_large(length, most))
        try:
            body = self.rfile.read(length)
        except TimeoutError:
            return self._refuse(408, "The request did not arrive in time.")
        if len(body) < length:
            return self._refuse(400, "The request was cut off.")
        return body

    def _run(self, answer: Callable[[], Any]) -> None:
        try:
            found = answer()
        except RequestError as error:
            return self._refuse(400, str(error))
        except Exception:  # a fault of ours: its details are for the terminal
            traceback.print_exc()
            return self._refuse(500, "The model failed; the terminal says more.")
        self._send_json(200, found)

    def _refuse(self, status: int, sentence: str) -> None:
        self._send_json(status, {"error": sentence})
        self._forget()

    def _forget(self) -> None:
        """Read on for a moment: who is cut off while sending does not see the answer."""
        end = time.monotonic() + FAREWELL_S
        with suppress(OSError):  # it may be gone
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(0.2)
            while time.monotonic() < end and self.rfile.read1(1 << 16):
                pass

    def _send_json(self, status: int, value: Any) -> None:
        text = json.dumps(value, ensure_ascii=True, allow_nan=False)
        self._send(status, text.encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": self.server.page.policy,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        with suppress(OSError):  # whoever asked may be gone
            self.end_headers()
            self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses by itself, in our form."""
        self._refuse(code, "The request is not one that is answered here.")

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal is for faults."""
