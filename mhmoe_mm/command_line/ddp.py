"""Several processes that each hold all weights, where not every step uses all of them.

Fine-tuning never uses some parameters (a mask token, the branch of texts in a task of images), and
which others a step leaves out depends on its batch. Torch's `DistributedDataParallel` then
waits for gradients that never come, unless it looks for such parameters in every step.
"""

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info


def expect_unused_parameters(trainer: Trainer) -> None:
    """Let DDP look for unused parameters, unless it was told whether to."""
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy):
        return
    options = strategy._ddp_kwargs
    if "find_unused_parameters" in options or options.get("static_graph"):
        return
    options["find_unused_parameters"] = True
    rank_zero_info(
        "ddp looks for parameters that a step does not use; where every step uses all, "
        "`--trainer.strategy ddp_find_unused_parameters_false` saves that"
    )
