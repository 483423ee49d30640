"""Language modelling: predict the next token of texts, in one language or many.

The papers' first two tasks. Sources: https://arxiv.org/abs/2404.15045, section 4.1, and
https://arxiv.org/abs/2411.16205, section 4.
"""

import torch

from mhmoe_mm.batches import IGNORED, LanguageBatch
from mhmoe_mm.losses import Prediction, exact_sum
from mhmoe_mm.metrics.text_score import TextScore
from mhmoe_mm.models.decoder import Decoded, Decoder
from mhmoe_mm.moe.routing import Kinds
from mhmoe_mm.optim import AdamW, WarmupCosine
from mhmoe_mm.tasks.base import OptimizerFactory, Outcome, ScheduleFactory, Task
from mhmoe_mm.vocabulary_loss import CHUNK, token_losses, vocabulary_cross_entropy


class LanguageModeling(Task):
    """The next token of every token. An evaluation gives the mean in nats (`text`), the perplexity
    and bits per byte, the latter two also for each language.

    Args:
        net: the causal decoder.
        across_documents: whether tokens look into documents before their own in the same row. The
            papers' models do; without, positions start anew in each document.
        loss_chunk: tokens whose scores over the vocabulary exist together; fewer take less memory.
        optimizer, schedule, balance_weight, z_weight, init_from: as in Task.
    """

    def __init__(
        self,
        net: Decoder,
        across_documents: bool = True,
        loss_chunk: int = CHUNK,
        optimizer: OptimizerFactory = AdamW,
        schedule: ScheduleFactory = WarmupCosine,
        balance_weight: float = 0.01,
        z_weight: float = 0.0,
        init_from: str | None = None,
    ):
        super().__init__(
            net, {"text": 1.0}, optimizer, schedule, balance_weight, z_weight, init_from
        )
        if loss_chunk < 1:
            raise ValueError(f"loss_chunk is a number of tokens, 1 or more, got {loss_chunk}.")
        self.net: Decoder = net
        self.across_documents, self.loss_chunk = across_documents, loss_chunk
        self.score = TextScore()

    def losses(self, batch: LanguageBatch) -> Outcome:
        decoded = self._decoded(batch)
        target = torch.where(batch.valid[:, None], batch.target, IGNORED).flatten()
        hidden, weight = decoded.hidden.flatten(0, 1), self.net.output_weight
        prediction = vocabulary_cross_entropy(hidden, weight, target, self.loss_chunk)
        return Outcome({"text": prediction}, decoded.loads)

    @torch.no_grad()
    def evaluate(self, batch: LanguageBatch) -> Outcome:
        decoded = self._decoded(batch)
        wanted = (batch.target != IGNORED) & batch.valid[:, None]
        target = batch.target[wanted]
        each, right = token_losses(
            decoded.hidden[wanted], self.net.output_weight, target, self.loss_chunk
        )
        tokens = wanted.sum(dim=1)
        by_row = each.new_zeros(wanted.shape).masked_scatter(wanted, each)
        nats = exact_sum(by_row)
        language = [batch.languages[i] for i in batch.language.tolist()]
        self.score.update(nats, tokens, batch.num_bytes, language, batch.key, batch.valid)
        mean = each.sum() / tokens.sum().clamp(min=1)
        prediction = Prediction(mean, right.sum(), tokens.sum(), exact_sum(each))
        return Outcome({"text": prediction}, decoded.loads)

    def _decoded(self, batch: LanguageBatch) -> Decoded:
        """Loads are told apart by language; rows that only fill up an evaluation's batch go to no
        expert.
        """
        document = None if self.across_documents else batch.document
        keep = None if self.training else batch.valid[:, None].expand_as(batch.token)
        kinds = Kinds(batch.language[:, None].expand_as(batch.token), tuple(batch.languages))
        return self.net(batch.token, document, keep, kinds)
