"""Take over a model of others: into a folder that mhmoe_mm.load, --model.init_from and tasks read.

    python -m mhmoe_mm.checkpoint beit3_base_patch16_480_vqa.pth --out beit3_vqa \\
      --tokenizer beit3.spm --names answer2label.txt
    python -m mhmoe_mm.checkpoint beit3_base_patch16_224.pth --out beit3_384 --image-size 384
    python -m mhmoe_mm.checkpoint checkpoint-rank-*.pt --top-k 2 --out mh_moe

What FILE is, its keys say: a released BEiT-3 model, an image tokenizer of BEiT v2, or a decoder of
MH-MoE, of which every rank wrote a file. Weights become float32 and get our names; a name that is
unknown is an error. Without --out nothing is written: the report alone. No code of a file is run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mhmoe_mm.checkpoint.beit3 import from_beit3, is_beit3
from mhmoe_mm.checkpoint.decoder import from_decoder, in_order_of_ranks, is_decoder, merged_ranks
from mhmoe_mm.checkpoint.imported import Imported, read_entries, write_imported
from mhmoe_mm.checkpoint.report import table
from mhmoe_mm.checkpoint.vit import is_vit
from mhmoe_mm.checkpoint.vqkd import from_vqkd, is_vqkd
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
    files = in_order_of_ranks(given.file)
    source = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    weights = merged_ranks({file: read_weights(file) for file in files})
    model = _recognised(weights, source, given)
    print(f"{source}: {model.title}, {len(weights)} tensors")
    for line in [*table(model.names, weights), *model.notes]:
        print(f"  {line}")
    if given.out is None:
        return 0
    said = write_imported(
        given.out, model, Path(source).name, given.tokenizer, entries, given.overwrite
    )
    parameters = sum(weight.numel() for weight in model.weights.values())
    print(f"{given.out}: {model.task.rpartition('.')[2]}, {parameters:,} parameters")
    for line in said:
        print(f"  {line}")
    return 0


def _recognised(weights: dict[str, Tensor], source: str, given: argparse.Namespace) -> Imported:
    if is_beit3(weights):
        return from_beit3(weights, source, given.num_heads, given.image_size)
    if is_vqkd(weights):
        return from_vqkd(weights, source, given.num_heads)
    if is_decoder(weights):
        return from_decoder(weights, source, given.num_heads, given.top_k, given.max_text)
    if is_vit(weights):
        raise ValueError(
            f"{source} is an image transformer of timm, which a network of yours may start from as "
            "its image side: --model.init_from names it."
        )
    some = ", ".join(sorted(weights)[:3]) or "nothing"
    raise ValueError(f"{source} is no model that is known here; it holds {some}, for example.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mhmoe_mm.checkpoint", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("file", nargs="+", metavar="FILE", help="what torch.save wrote, or safetensors")
    add("--out", type=Path, metavar="FOLDER", help="to be written; without it, only the report")
    add("--overwrite", action="store_true", help="replace an exported model that is there")
    add("--image-size", type=int, metavar="N", help="interpolate positions to N x N pixels")
    add("--num-heads", type=int, metavar="N", help="of the attention (released: width / 64)")
    add("--top-k", type=int, metavar="K", help="experts that read a token of a decoder")
    add("--max-text", type=int, default=2048, metavar="N", help="longest text of a decoder (2048)")
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
