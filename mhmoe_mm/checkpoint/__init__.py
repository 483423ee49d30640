"""Weights of others as ours, and ours as theirs.

    weights.py    the tensors in a file, whoever wrote it; nothing that it says is run
    starting.py   the weights of one training as the start of another: `init_from` of every task
    moments.py    the optimizer's state beside them, where upcycling kept it
    beit3.py      the released BEiT-3 models, there and back
    decoder.py    the released decoders of MH-MoE, whose experts several ranks wrote
    vqkd.py       the released image tokenizers of BEiT v2
    vit.py        image transformers of timm as the image side of a multiway encoder
    report.py     what became of every tensor, layers together
    imported.py   a folder that `mhmoe_mm.load` and `init_from` read

`python -m mhmoe_mm.checkpoint` is the program.
"""

from mhmoe_mm.checkpoint.moments import load_moments
from mhmoe_mm.checkpoint.starting import Loaded, load_weights
from mhmoe_mm.checkpoint.weights import check_path, read_weights

__all__ = ["Loaded", "check_path", "load_moments", "load_weights", "read_weights"]
