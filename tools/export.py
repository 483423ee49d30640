"""Make a folder for others from a checkpoint: weights in one safetensors file, the rest as texts.

    python -m tools.export runs/vqa/version_0 --out vqa_model
    python -m tools.export runs/vqa/version_0 --format beit3 --out beit3_vqa.pth
    python -m tools.export runs/vqa/version_0 --format onnx --backend every --out vqa_onnx

CHECKPOINT is one file, a folder of shards of any number of ranks, or the folder of a run for its
last one. The folder is written whole or not at all, and has a README for people. mhmoe_mm.load and
--model.init_from read it. Of the other formats, beit3 is a file of weights under the names of the
released BEiT-3 models, for dense networks laid out as these; onnx and torch are folders of graphs
with free batch and text length, run and compared with the model before they are handed out. --part
says what they compute: pair, image, text (hidden rows), embed_image, embed_text, answer, classify.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mhmoe_mm.exporting import export, export_beit3
from mhmoe_mm.graph_folder import export_graphs
from mhmoe_mm.graphs import BACKENDS, KINDS, PARTS
from tools.build_shards.errors import InputError, run_reporting

FORMATS = ("folder", "beit3", *KINDS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run export; returns the exit code."""
    given = _parser().parse_args(argv)
    return run_reporting(lambda: _run(given), "Interrupted; nothing was written.")


def _run(given: argparse.Namespace) -> int:
    if given.format == "beit3":
        return _beit3(given)
    if given.format in KINDS:
        return _graphs(given)
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


def _graphs(given: argparse.Namespace) -> int:
    try:
        about = export_graphs(
            given.checkpoint,
            given.out,
            given.format,
            given.part,
            given.backend,
            given.tokenizer,
            given.plugin,
            given.overwrite,
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    for part in about["parts"].values():
        inputs, checked = ", ".join(part["inputs"]), part["checked"]
        lengths = f", texts of {_all(checked['lengths'])} tokens" if checked["lengths"] else ""
        print(
            f"{given.out / part['file']}: {inputs} -> {part['output']['name']}; differs from the "
            f"model by {checked['difference']:.1e} at most (batches of {_all(checked['batches'])}"
            f"{lengths})"
        )
    return 0


def _all(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.export", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or the folder of a run")
    add("--out", type=Path, required=True, metavar="FOLDER", help="to be written")
    add("--format", choices=FORMATS, default="folder", help="default folder")
    add("--part", action="append", default=[], choices=PARTS, help="of graphs; may be repeated")
    add("--backend", choices=BACKENDS, help="what carries out sparse layers in graphs")
    add("--overwrite", action="store_true", help="replace an exported model that is there")
    add("--tokenizer", metavar="FILE", help="of a checkpoint that does not keep its tokenizer.json")
    add("--plugin", action="append", default=[], metavar="PKG", help="as for mhmoe-mm")
    return parser


if __name__ == "__main__":
    sys.exit(main())
