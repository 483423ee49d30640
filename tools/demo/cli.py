"""The command `python -m tools.demo`: a page in the browser that asks a trained model.

    python -m tools.demo --model runs/vqa_easy_vqa/version_0 --shards data/easy_vqa/test
    python -m tools.demo --model retrieval.ckpt --shards data/openmoji/test --captions captions.txt

Drop a picture, ask, and see beside the answer which experts read which patch and word. Only this
machine reaches the page unless --host says otherwise. See docs/demo.md.
"""

import argparse
import errno
import sys
from pathlib import Path

from mhmoe_mm.loading import load_task
from mhmoe_mm.storage.exported import class_path
from mhmoe_mm.tasks.retrieval import Retrieval
from tools.build_shards.errors import InputError, run_reporting
from tools.demo.asking import TASKS, Demo
from tools.demo.collection import Collection
from tools.demo.page import page
from tools.demo.server import Server
from tools.expert_report.recording import refused, run_folder_of

MOST_CAPTIONS = 100_000


def main(argv: list[str] | None = None) -> int:
    """Serve the page until Ctrl-C; 2 and a sentence where something is wrong."""
    options = _parser().parse_args(argv)
    return run_reporting(lambda: _run(options), "Stopped.", name="demo")


def _run(options: argparse.Namespace) -> int:
    with server_of(options) as server:
        layers = len(server.demo.readings.layers)
        experts = f"{layers} sparse layers" if layers else "a dense network, without experts"
        print(f"{server.demo.name}: {type(server.demo.model.task).__name__}, {experts}.")
        print(f"Open {server.url} in a browser; Ctrl-C ends it.", flush=True)
        if not server.loopback:
            print(
                f"Warning: whoever reaches {options.host} over the network can use the model, and "
                "nothing is encrypted.",
                file=sys.stderr,
            )
        server.serve_forever(poll_interval=0.2)
    return 0


def server_of(options: argparse.Namespace) -> Server:
    """The server that the options describe, listening; InputError says what is wrong with them."""
    if not 0 <= options.port <= 65535:
        raise InputError(f"--port is from 0 to 65535, got {options.port}.")
    if not 0.001 <= options.max_upload <= 1000:
        raise InputError(f"--max-upload is from 0.001 to 1000 (MB), got {options.max_upload:g}.")
    captions = _captions(options.captions) if options.captions else []
    with refused():
        kinds = {class_path(kind): kind for kind in TASKS}
        found = load_task(options.model, options.device, plugins=options.plugin, kinds=kinds)
        collection = Collection(options.shards, found.task) if options.shards else None
        most_bytes = round(options.max_upload * 1e6)
        demo = Demo(found, _name(found.file), collection, captions, most_bytes)
    if isinstance(found.task, Retrieval) and collection is None:
        print("Without --shards there are no images to search: only captions are compared.")
    try:
        return Server(options.host, options.port, demo, page())
    except OSError as error:
        raise InputError(_why_not(error, options.host, options.port)) from error


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} of {host} is taken: choose another one with --port, or 0 for any that "
            "is free."
        )
    return f"The page cannot be served at {host}, port {port}: {error.strerror or error}."


def _name(file: Path) -> str:
    """A run by its name and version, a file by its own; never a path of this disk."""
    folder = run_folder_of(file)
    if folder is None:
        return file.name
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}"


def _captions(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except ValueError as error:
        raise InputError(f"{path} is not UTF-8: {error}") from error
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not 0 < len(found) <= MOST_CAPTIONS:
        raise InputError(
            f"{path} has {len(found):,} captions, one a line; 1 to {MOST_CAPTIONS:,} are searched."
        )
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--model", required=True, type=Path, help="a run's folder, a checkpoint or an export")
    add("--shards", metavar="PATTERN", help="images to search (Retrieval), and for examples")
    add("--captions", type=Path, metavar="FILE", help="captions to search, one a line (Retrieval)")
    add("--host", default="127.0.0.1", help="where it listens (default 127.0.0.1)")
    add("--port", type=int, default=8000, help="(default 8000; 0 takes any that is free)")
    add("--max-upload", type=float, default=10, metavar="MB", help="of an image (default 10)")
    add("--device", default="cpu", help="where the model computes (default cpu)")
    add("--plugin", action="append", default=[], metavar="PKG", help="as for mhmoe-mm")
    return parser
