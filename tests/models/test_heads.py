"""The heads of masked pretraining."""

import torch

from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.heads import MaskedImageHead, MaskedLanguageHead
from mhmoe_mm.models.multiway import ReleasedLayout


def test_heads_read_rows_of_any_arrangement():
    for head in (MaskedLanguageHead(7, 13), MaskedImageHead(7, 13)):
        hidden = torch.randn(2, 5, 7)
        assert head(hidden).shape == (2, 5, 13)
        torch.testing.assert_close(head(hidden)[1, 3], head(hidden[1, 3]))


def test_backbone_and_heads_have_the_size_of_the_released_base_model():
    with torch.device("meta"):
        parts = [
            BEiT3(ReleasedLayout()),
            MaskedLanguageHead(768, 64010),
            MaskedImageHead(768, 8192),
        ]
    total = sum(p.numel() for part in parts for p in part.parameters())
    assert round(total / 1e6, 2) == 276.51
