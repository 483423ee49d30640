"""What the encoder refuses, each with one sentence.

Shape checks are off here, as they are outside of tests.
"""

import jaxtyping
import pytest
import torch

from mhmoe_mm.models.multiway import PaperLayout, ReleasedLayout, SharedLayout

from .nets import BATCH, PATCHES, dense_ffn, small_inputs, small_net

IMAGE, TEXT, PAD = small_inputs()
MASKED = torch.zeros(BATCH, PATCHES, dtype=torch.bool)


@pytest.fixture(scope="module")
def net():
    return small_net(SharedLayout(dense=dense_ffn))


@pytest.fixture(autouse=True)
def _no_shape_checks():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ((None, None), "needs an image, a text or both, got neither"),
        ((torch.zeros(2, 3, 12, 16), None), "reads images of 12x12 pixels, got 12x16"),
        ((torch.zeros(2, 1, 12, 12), None), r"height, width\), got \(2, 1, 12, 12\)"),
        ((None, torch.zeros(2, 13, dtype=torch.long)), "at most 11 tokens, got 13"),
        ((IMAGE[:2], TEXT), "got 2 images and 3 texts"),
        ((None, TEXT, PAD[:, 1:]), r"shape \(3, 7\) of the text, got \(3, 6\)"),
        ((None, TEXT, PAD.long()), "`pad` is a bool, true at padding, got torch.int64"),
        ((IMAGE, None, PAD), "`pad` marks padding of a text, and no text was given"),
        ((None, TEXT, None, MASKED), "`masked` marks patches of an image, and no image was given"),
        ((IMAGE, None, None, MASKED[:, 1:]), r"shape is \(3, 9\), got \(3, 8\)"),
        ((IMAGE, None, None, MASKED[1:]), r"shape is \(3, 9\), got \(2, 9\)"),
        (
            (IMAGE, None, None, MASKED.float()),
            "`masked` is a bool, true where masked, got torch.float32",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(net, inputs, sentence):
    with pytest.raises(ValueError, match=sentence):
        net(*inputs)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"image_size": 14}, "14x14 pixels do not divide into patches of 4x4"),
        ({"num_heads": 3}, "dim=22 into num_heads=3 equal heads"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(sizes, sentence):
    with pytest.raises(ValueError, match=sentence):
        small_net(SharedLayout(dense=dense_ffn), **sizes)


def test_layouts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"sparse_every is 1 .* got 0"):
        ReleasedLayout(sparse_every=0)
    with pytest.raises(ValueError, match="between 0 and num_layers=5, got 6"):
        small_net(PaperLayout(fused_layers=6))
