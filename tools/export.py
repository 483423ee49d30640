"""Make a folder for others from a checkpoint: weights in one safetensors file, the rest as texts.

    python -m tools.export runs/vqa/version_0 --out vqa_model
    python -m tools.export runs/vqa/version_0 --format beit3 --out beit3_vqa.pth

CHECKPOINT is one file, a folder of shards of any number of ranks, or the folder of a run for its
last one. The folder is written whole or not at all, and has a README for people. mhmoe_mm.load and
--model.init_from read it. Of the other formats, beit3 is a file of weights under the names of the
released BEiT-3 models, for dense networks laid out as these.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mhmoe_mm.exporting import export, export_beit3
from tools.build_shards.errors import InputError, run_reporting

FORMATS = ("folder", "beit3")


def main(argv: Sequence[str] | None = None) -> int:
    """Run export; returns the exit code."""
    given = _parser().parse_args(argv)
    return run_reporting(lambda: _run(given), "Interrupted; nothing was written.")


def _run(given: argparse.Namespace) -> int:
    if given.format == "beit3":
        return _beit3(given)
    try:
        config = export(given.checkpoint, given.out, given.tokenizer, given.plugin, given.overwrite)
    except ValueError as error:
        raise InputError(str(error)) from error
    print(
        f"{given.out}: {config['task']['class_path'].rpartition('.')[2]} at step {config['step']}, "
        f"{config['parameters']:,} parameters, {config['active_parameters']:,} of them active"
    )
    return 0


def _beit3(given: argparse.Namespace) -> int:
    try:
        model, tensors = export_beit3(given.checkpoint, given.out, given.overwrite)
    except ValueError as error:
        raise InputError(str(error)) from error
    print(f"{given.out}: BEiT-3, {model}, {tensors} tensors")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.export", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or the folder of a run")
    add("--out", type=Path, required=True, metavar="FOLDER", help="to be written")
    add("--format", choices=FORMATS, default="folder", help="default folder")
    add("--overwrite", action="store_true", help="replace an exported model that is there")
    add("--tokenizer", metavar="FILE", help="of a checkpoint that does not keep its tokenizer.json")
    add("--plugin", action="append", default=[], metavar="PKG", help="as for mhmoe-mm")
    return parser


if __name__ == "__main__":
    sys.exit(main())
