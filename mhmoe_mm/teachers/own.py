"""A network of this project as a teacher: one that has learned from captions, for instance."""

from jaxtyping import Float
from torch import Tensor

from mhmoe_mm.checkpoint import check_path, load_weights
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.teachers.base import Teacher


class NetTeacher(Teacher):
    """What an encoder says of the patches of an image alone, after its last norm.

    Args:
        net: the encoder, described as where it was trained.
        weights: a checkpoint of any task, an export, or a safetensors file, as for `init_from`.
    """

    def __init__(self, net: BEiT3, weights: str):
        super().__init__()
        check_path(weights)
        self.net, self.weights = net.requires_grad_(False).eval(), weights
        self.feature_dim = net.dim
        self.image_size = net.image_embedding.image_size
        self.grid = round(net.image_embedding.num_patches**0.5)

    def load(self) -> None:
        report = load_weights(self, self.weights)
        missing = [name for name in report.missing if not name.startswith("net.text_embedding.")]
        if missing:
            raise ValueError(
                f"{self.weights} lacks {missing[0]} and {len(missing) - 1} more weights of the "
                "teacher: describe the network as where it was trained."
            )

    def features(
        self, image: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch patches features"]:
        return self.net(image, None).hidden[:, 1:]
