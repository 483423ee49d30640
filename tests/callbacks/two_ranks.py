"""Run by test_expert_activation_ranks on ranks: two ranks that see different layers."""

import sys

from lightning.pytorch.strategies import DDPStrategy

from mhmoe_mm.callbacks.expert_activation import ExpertActivation
from tests.callbacks.standin import Watched, load_of, numbers, quiet_trainer

if __name__ == "__main__":
    watch = ExpertActivation(every_n_steps=2)
    trainer = quiet_trainer(
        sys.argv[1],
        [watch],
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
        use_distributed_sampler=False,
        max_steps=3,
    )

    def loads(stage: str, batch: int):
        both = {"both": load_of([[batch, 1, 0], [0, 0, 0]], [batch + 1, 0])}
        late = {"odd": load_of([[0, 0, 0, 0, 0], [0, 0, 7, batch, 0]], [0, batch + 7])}
        return both | late if batch % 2 else both

    first = trainer.global_rank  # rank 0 reads the even numbers, rank 1 the odd ones
    trainer.fit(Watched(loads), numbers(6, first, 2), numbers(4, first, 2))
    rows = {(r.layer, r.kind): r for r in watch.summary()}
    # On every rank, not on the first alone: 0 + 1 + 2 + 3 of 10 assignments over three experts.
    assert abs(rows["both", "image"].max_over_mean - 6 * 3 / 10) < 1e-9, rows
    assert abs(float(trainer.callback_metrics["val/experts/activation_image"]) - 2 / 3) < 1e-6
