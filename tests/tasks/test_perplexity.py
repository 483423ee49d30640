"""Perplexity is logged where tokens of texts are predicted, and nowhere else."""

import torch

from mhmoe_mm.tasks.image_classification import ImageClassification
from mhmoe_mm.tasks.masked_pretraining import MaskedPretraining
from mhmoe_mm.tasks.nlvr2 import NLVR2
from tests.tasks.batches import classes, small_net, statements
from tests.tasks.training import FAST, validate


def test_a_choice_between_classes_has_no_perplexity():
    torch.manual_seed(0)
    for task, batch in (
        (ImageClassification(small_net(), 5, **FAST), classes(5)),
        (NLVR2(small_net(), **FAST), statements(5)),
    ):
        logged = validate(task, batch)
        assert "val/loss" in logged
        assert not [name for name in logged if "perplexity" in name]


def test_only_texts_of_pretraining_have_a_perplexity():
    assert MaskedPretraining.token_objectives == ("text", "pair_text")
