"""Captions, token by token: a mask token after what is written asks the network for the next one.

    image <s>            <mask>  ->  a
    image <s> a          <mask>  ->  red
    image <s> a red      <mask>  ->  ball
    image <s> a red ball <mask>  ->  </s>

The mask token is then replaced by what it asked for. Image tokens look at the image only, text
tokens at the image and the text before them, so what was read never changes: keys and values are
kept and each step reads two tokens. Training (`tasks/captioning.py`) uses the same `visible`.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mhmoe_mm.models.attention import Past
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.causal import check_single_tokens


def caption_visible(
    num_image: int, num_text: int, device: torch.device | None = None
) -> Bool[Tensor, "queries keys"]:
    """Who may look at whom in a captioned image: images at images, texts at both but not ahead."""
    place = torch.arange(num_image + num_text, device=device)
    return place[None] <= place[:, None].clamp(min=num_image - 1)


def check_causal(net: BEiT3) -> None:
    """Refuse a network whose routers let a token's experts depend on other tokens.

    Raises:
        ValueError: an expert-choice router, or one with a capacity.
    """
    check_single_tokens(net, "Captions cannot be generated")


class Reader:
    """Feeds captions to a network token by token and predicts the next one.

    Args:
        net: the encoder.
        head: from hidden rows to scores of the vocabulary.
        mask: id of the mask token.
    """

    def __init__(self, net: BEiT3, head: Callable[[Tensor], Tensor], mask: int):
        check_causal(net)
        self.net, self.head, self.mask = net, head, mask
        self._past: list[Past] = []
        self._length = 0

    def start(
        self, image: Float[Tensor, "batch 3 height width"], token: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch vocab"]:
        """Read the images and every caption's first token; scores of the second."""
        self._past = [Past() for _ in self.net.blocks]
        text = self._with_mask(token)
        split = 1 + self.net.image_embedding.num_patches
        visible = caption_visible(split, 2, image.device)
        encoded = self.net(image, text, visible=visible, past=self._past)
        return self._next(encoded.hidden[:, -1], forgotten=[split + 1])

    def step(self, token: Int[Tensor, " batch"]) -> Float[Tensor, "batch vocab"]:
        """Read every caption's next token; scores of the one after it."""
        assert self._past[0].key is not None
        known = self._past[0].key.shape[2]
        hidden = self.net.read_on(self._with_mask(token), self._length, self._past)
        return self._next(hidden[:, -1], forgotten=[known, known + 2])

    def reorder(self, rows: Int[Tensor, " rows"]) -> None:
        """Go on with caption `rows[i]` in place i."""
        for past in self._past:
            past.reorder(rows)

    def _with_mask(self, token: Tensor) -> Tensor:
        return torch.stack([token, torch.full_like(token, self.mask)], dim=1)

    def _next(self, hidden: Tensor, forgotten: list[int]) -> Tensor:
        """Scores at the mask token, which is forgotten together with the filler before it."""
        for past in self._past:
            past.forget(torch.tensor(forgotten, device=hidden.device))
        self._length = 1 if len(forgotten) == 1 else self._length + 1
        return self.head(hidden).float()
