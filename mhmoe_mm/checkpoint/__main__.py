"""Take over a model of others: into a folder that mhmoe_mm.load, --model.init_from and tasks read.

    python -m mhmoe_mm.checkpoint beit3_base_patch16_480_vqa.pth --out beit3_vqa \\
      --tokenizer beit3.spm --names answer2label.txt
    python -m mhmoe_mm.checkpoint beit3_base_patch16_224.pth --out beit3_384 --image-size 384

What FILE is, its keys say: a released BEiT-3 model. Weights become float32 and get our names; a
name that is unknown is an error. Without --out nothing is written: the report alone. No code of a
file is run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mhmoe_mm.checkpoint.beit3 import from_beit3, is_beit3
from mhmoe_mm.checkpoint.imported import Imported, read_entries, write_imported
from mhmoe_mm.checkpoint.report import table
from mhmoe_mm.checkpoint.weights import read_weights
from mhmoe_mm.storage.exported import check_place


def main(argv: Sequence[str] | None = None) -> int:
    """Run the import; returns the exit code."""
    given = _parser().parse_args(argv)
    try:
        return _run(given)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(given: argparse.Namespace) -> int:
    if given.out is not None:
        check_place(given.out, given.overwrite)
    entries = None if given.names is None else read_entries(given.names)
    weights = read_weights(given.file)
    model = _recognised(weights, given)
    print(f"{given.file}: {model.title}, {len(weights)} tensors")
    for line in [*table(model.names, weights), *model.notes]:
        print(f"  {line}")
    if given.out is None:
        return 0
    source = Path(given.file).name
    said = write_imported(given.out, model, source, given.tokenizer, entries, given.overwrite)
    parameters = sum(weight.numel() for weight in model.weights.values())
    print(f"{given.out}: {model.task.rpartition('.')[2]}, {parameters:,} parameters")
    for line in said:
        print(f"  {line}")
    return 0


def _recognised(weights: dict, given: argparse.Namespace) -> Imported:
    if is_beit3(weights):
        return from_beit3(weights, given.file, given.num_heads, given.image_size)
    some = ", ".join(sorted(weights)[:3]) or "nothing"
    raise ValueError(f"{given.file} is no model that is known here; it holds {some}, for example.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mhmoe_mm.checkpoint", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("file", metavar="FILE", help="what torch.save wrote, or safetensors")
    add("--out", type=Path, metavar="FOLDER", help="to be written; without it, only the report")
    add("--overwrite", action="store_true", help="replace an exported model that is there")
    add("--image-size", type=int, metavar="N", help="interpolate positions to N x N pixels")
    add("--num-heads", type=int, metavar="N", help="of the attention (released: width / 64)")
    add("--tokenizer", metavar="FILE", help="tokenizer.json, or a SentencePiece model (.spm)")
    add(
        "--names",
        type=Path,
        metavar="FILE",
        help="of answers or classes: a JSON list, or the released answer2label.txt",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
