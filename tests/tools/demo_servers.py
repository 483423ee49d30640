"""Demos of tiny models, and what asks them without a browser."""

import base64
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mhmoe_mm.inputs.texts import Texts
from mhmoe_mm.inputs.tokenization import Tokenizer
from mhmoe_mm.loading import LoadedTask
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.models.image_targets import NormalizedPixels
from mhmoe_mm.models.multiway import SharedLayout
from mhmoe_mm.tasks.base import Task
from mhmoe_mm.tasks.masked_pretraining import MaskedPretraining
from mhmoe_mm.tasks.vqa import VQA
from tests.datamodules.task_shards import ANSWERS
from tests.tasks.batches import PATCH, SEQ, SIZE, VOCAB, small_net
from tests.trained import Trained
from tools.demo.asking import Demo
from tools.demo.cli import _parser, server_of
from tools.demo.page import page
from tools.demo.server import Server


class Reply(NamedTuple):
    """What a server said."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def send(
    server: Server,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Reply:
    """One request, with the headers of a browser's page unless others are given."""
    host, port = server.server_address[:2]
    connection = http.client.HTTPConnection(str(host), int(port), timeout=20)
    usual = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(method, path, body, usual | (headers or {}))
    response = connection.getresponse()
    return Reply(response.status, dict(response.headers), response.read())


def ask(server: Server, mode: str, *images: bytes, text: str = "", **more: Any) -> Reply:
    """A question as the page sends it."""
    encoded = [base64.b64encode(image).decode() for image in images]
    request = {"mode": mode, "images": encoded, "text": text, **more}
    return send(server, "POST", "/ask", json.dumps(request).encode())


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """A server that answers in the background."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def of_command(*options: str) -> Server:
    """The server that a command line describes, on a free port."""
    return server_of(_parser().parse_args([*options, "--port", "0"]))


def of_model(made: Trained, *options: str, shards: bool = True) -> Server:
    """The server of a trained model, with its shards."""
    given = ["--shards", str(made.moved.parent / "shards")] if shards else []
    return of_command("--model", str(made.run), *given, *options)


def pretraining(tokenizer: str) -> Server:
    """The server of a model of masked pretraining, its weights random."""
    torch.manual_seed(0)
    return _made(MaskedPretraining(small_net(), NormalizedPixels(PATCH)), tokenizer)


def dense(tokenizer: str) -> Server:
    """The server of a VQA model without experts, its weights random."""
    torch.manual_seed(0)
    layout = SharedLayout(dense=partial(GeluFFN, hidden=29), sparse=None)
    return _made(VQA(BEiT3(layout, SIZE, PATCH, VOCAB, 28, 2, 2, max_text=SEQ), ANSWERS), tokenizer)


def _made(task: Task, tokenizer: str) -> Server:
    texts = Texts(Tokenizer(Path(tokenizer)), 9)
    demo = Demo(LoadedTask(task.eval(), texts, 0, Path("random.ckpt")), "random.ckpt")
    return Server("127.0.0.1", 0, demo, page())
