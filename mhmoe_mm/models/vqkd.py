"""A learned tokenizer of images: VQ-KD, vector-quantised knowledge distillation.

    image -> encoder -> encode_head -> unit vectors -> codebook -> codes     the tokens
                                                          |
    the teacher's features <- decode_head <- decoder <----+

The decoder predicts what a teacher says of every patch from codes alone, so the codes must keep
what the teacher sees: meaning more than pixels. Encoder and decoder are timm's `Beit` with absolute
positions, whose weights have the names of the released tokenizers; of those

    released                    here
    encoder.*, decoder.*        the same
    encode_task_layer.*         encode_head.*
    decode_task_layer.*         decode_head.*
    quantize.embedding.weight   codebook.code
    quantize.embedding.initted  codebook.started
    quantize.cluster_size       codebook.recent

and `quantize.embedding.cluster_size` and `.embed_avg` are statistics that nothing needs.
Source: https://arxiv.org/abs/2208.06366 and the code released with it.
"""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from timm.models.beit import Beit
from torch import Tensor, nn

from mhmoe_mm.models.attention import check_heads
from mhmoe_mm.models.codebook import Codebook
from mhmoe_mm.models.init import linear
from mhmoe_mm.models.pixel_statistics import renormalized, statistics

EPS = 1e-6
"""Of the norms, as released."""


class Tokenized(NamedTuple):
    """What a tokenizer makes of images."""

    vector: Float[Tensor, "batch patches code_dim"]
    """Unit vectors, before they became codes."""
    token: Int[Tensor, "batch patches"]
    """The number of each patch's code, row-major over the grid."""
    feature: Float[Tensor, "batch patches features"]
    """What the decoder takes the teacher's features for."""


class VQKD(nn.Module):
    """A tokenizer of image patches; the defaults are the released one with three decoder layers.

    Images come normalised as for every network here, and become what the tokenizer was trained
    with.

    Args:
        image_size, patch_size: in pixels; the first is a multiple of the second.
        dim, num_heads: width and attention heads of encoder and decoder.
        encoder_layers, decoder_layers: their depths.
        num_codes, code_dim: size of the codebook, features of a code.
        feature_dim: features of the teacher.
        pixels: whose colour statistics the encoder reads, of `pixel_statistics.STATISTICS`.
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        dim: int = 768,
        num_heads: int = 12,
        encoder_layers: int = 12,
        decoder_layers: int = 3,
        num_codes: int = 8192,
        code_dim: int = 32,
        feature_dim: int = 512,
        pixels: str = "half",
    ):
        super().__init__()
        if image_size % patch_size:
            raise ValueError(
                f"Images of {image_size}x{image_size} pixels do not divide into patches of "
                f"{patch_size}x{patch_size}: choose image_size as a multiple of patch_size."
            )
        check_heads(dim, num_heads)
        self.mean, self.std = statistics(pixels)
        self.image_size, self.patch_size = image_size, patch_size
        self.grid = image_size // patch_size
        self.feature_dim = feature_dim
        transformer = partial(
            Beit,
            embed_dim=dim,
            num_heads=num_heads,
            num_classes=0,
            norm_layer=partial(nn.LayerNorm, eps=EPS),  # pyright: ignore[reportArgumentType]
        )
        self.encoder = transformer(img_size=image_size, patch_size=patch_size, depth=encoder_layers)
        self.encode_head = _head(dim, code_dim)
        self.codebook = Codebook(num_codes, code_dim)
        self.decoder = transformer(
            img_size=self.grid, patch_size=1, in_chans=code_dim, depth=decoder_layers
        )
        self.decode_head = _head(dim, feature_dim)

    @property
    def num_codes(self) -> int:
        """Size of the vocabulary."""
        return len(self.codebook.code)

    def encode(
        self, image: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch patches code_dim"]:
        """Unit vectors of the patches, not yet codes; in float32 whatever autocast says."""
        if image.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(
                f"The tokenizer reads images of the shape (batch, 3, {self.image_size}, "
                f"{self.image_size}), got {tuple(image.shape)}."
            )
        hidden = _patches(self.encoder, renormalized(image, self.mean, self.std))
        with torch.autocast(image.device.type, enabled=False):
            return F.normalize(self.encode_head(hidden.float()), dim=-1)

    def tokens(self, image: Float[Tensor, "batch 3 height width"]) -> Int[Tensor, "batch patches"]:
        """The number of every patch's code."""
        return self.codebook(self.encode(image))[1]

    def decode(
        self, code: Float[Tensor, "batch patches code_dim"]
    ) -> Float[Tensor, "batch patches features"]:
        """The teacher's features, from the codes of all patches."""
        square = rearrange(code, "b (h w) c -> b c h w", h=self.grid)
        return self.decode_head(_patches(self.decoder, square))

    def without_decoder(self) -> "VQKD":
        """The tokenizer itself, changed: it gives tokens and can no longer be trained."""
        del self.decoder, self.decode_head
        return self

    def forward(self, image: Float[Tensor, "batch 3 height width"]) -> Tokenized:
        """Tokens and what can be told from them."""
        vector = self.encode(image)
        code, token = self.codebook(vector)
        return Tokenized(vector, token, self.decode(code))


def _patches(
    transformer: Beit, image: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch patches dim"]:
    """A transformer's normed patches, without its class token."""
    return transformer.fc_norm(transformer.forward_features(image)[:, 1:])


def _head(dim: int, dim_out: int) -> nn.Sequential:
    return nn.Sequential(linear(dim, dim), nn.Tanh(), linear(dim, dim_out))
