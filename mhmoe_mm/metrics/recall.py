"""Recall of image-text retrieval in both directions."""

import torch
from torch import Tensor
from torchmetrics import Metric

from mhmoe_mm.metrics.packed import gather_bytes, kept, packed_tensor, unpacked_tensor

CUTOFFS = (1, 5, 10)
SCORES_AT_ONCE = 2**22
"""Scores held at a time: about 100 MB with what is derived from them."""


def ranks(
    query: Tensor, query_id: Tensor, candidate: Tensor, candidate_id: Tensor,
    scores_at_once: int = SCORES_AT_ONCE,
) -> Tensor:  # fmt: skip
    """For each query (queries dim), how many wrong candidates come before its best right one.

    Right are candidates with the query's id. Ties count against the query: a wrong candidate that
    scores as much as the best right one comes before it, so features that are all alike recall
    nothing. Scores are summed in float64 and compared in float32: equal features then tie wherever
    they stand.
    """
    if query.device.type == "mps":  # which has no float64
        query, query_id = query.cpu(), query_id.cpu()
        candidate, candidate_id = candidate.cpu(), candidate_id.cpu()
    candidate = candidate.double()
    rows = max(1, scores_at_once // max(1, len(candidate)))
    before = []
    for part, part_id in zip(query.split(rows), query_id.split(rows), strict=True):
        score = (part.double() @ candidate.T).float()
        right = part_id[:, None] == candidate_id
        best = score.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        before.append(((score >= best) & ~right).sum(dim=1))
    return torch.cat(before)


class RetrievalRecall(Metric):
    """Recall at 1, 5 and 10 of images by their captions and of captions by their image.

    Holds features, and scores them a part at a time in `compute`. An image counts once however many
    captions it has; an image is found if one of its captions is among the first k of all captions.
    Ties count against the query, as `ranks` says.
    """

    full_state_update = False
    image: list[Tensor]
    image_id: list[Tensor]
    text: list[Tensor]
    text_id: list[Tensor]

    def __init__(self) -> None:
        super().__init__(dist_sync_fn=gather_bytes)
        for name in ("image", "image_id", "text", "text_id"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self._held: set[int] = set()

    def update(
        self, image: Tensor, text: Tensor, image_id: Tensor, valid: Tensor | None = None
    ) -> None:
        """Add a batch of pairs.

        Features (batch dim) of images and of one caption each, in the scale in which their dot
        product is to be compared; `image_id` int64 (batch), equal where the image is. Rows where
        `valid` is false do not count.
        """
        rows = kept(valid, len(image_id))
        ids = image_id.tolist()
        new = list({ids[row]: row for row in reversed(rows) if ids[row] not in self._held}.values())
        self._held.update(ids[row] for row in new)
        for name, value in (
            ("image", image[new].float()), ("image_id", image_id[new].long()),
            ("text", text[rows].float()), ("text_id", image_id[rows].long()),
        ):  # fmt: skip
            getattr(self, name).append(packed_tensor(value))

    def reset(self) -> None:
        """Forget all features."""
        super().reset()
        self._held = set()

    def compute(self) -> dict[str, Tensor]:
        """`image_to_text_recall_at_1` and so on, and `mean_recall` of the six, from 0 to 1.

        `image_to_text` looks for captions of an image. Empty if there were no pairs.
        """
        image_id = unpacked_tensor(self.image_id, torch.long)
        text_id = unpacked_tensor(self.text_id, torch.long)
        if not len(text_id):
            return {}
        image = unpacked_tensor(self.image, torch.float32).view(len(image_id), -1)
        text = unpacked_tensor(self.text, torch.float32).view(len(text_id), -1)
        for name, feature in (("image", image), ("text", text)):
            if not feature.isfinite().all():
                rows = (~feature.isfinite().all(dim=1)).sum().item()
                raise ValueError(
                    f"{rows} of {len(feature)} {name} features hold NaN or infinity, so that no "
                    "recall can be computed: the network that made them has diverged."
                )
        image_id, image = _first_of_each(image_id, image)
        found = {
            "image_to_text": ranks(image, image_id, text, text_id),
            "text_to_image": ranks(text, text_id, image, image_id),
        }
        recalls = {
            f"{direction}_recall_at_{k}": (before < k).float().mean()
            for direction, before in found.items()
            for k in CUTOFFS
        }
        return recalls | {"mean_recall": torch.stack(list(recalls.values())).mean()}


def _first_of_each(ids: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
    """Features of distinct ids: several ranks may hold the same image."""
    position = {name: row for row, name in reversed(list(enumerate(ids.tolist())))}
    rows = torch.tensor(sorted(position.values()), device=ids.device)
    return ids[rows], feature[rows]
