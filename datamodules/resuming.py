"""What the data module and Lightning must agree on for a run to go on in the middle of an epoch."""

from typing import Any

from datamodules.loading import Progress
from datamodules.order import Schedule


def data_rank(trainer: Any) -> tuple[int, int]:
    """(rank, world) of the data: ranks that share a batch (tensor parallel) count as one."""
    if trainer is None:
        return 0, 1
    sampler = trainer.distributed_sampler_kwargs
    return (sampler["rank"], sampler["num_replicas"]) if sampler else (0, 1)


def batches_of_epoch(trainer: Any, schedule: Schedule, progress: Progress) -> int:
    """Batches of this epoch that this run has trained on.

    Under Lightning a batch that was handed out but is still being trained on does not count:
    Lightning would repeat it too.
    """
    if trainer is None:
        return progress.handed_out
    before = schedule.num_steps() - schedule.num_steps(progress.start)
    processed = trainer.fit_loop.epoch_loop.batch_progress.current.processed
    return min(progress.handed_out, max(0, processed - before))


def align_batch_count(trainer: Any, num_steps: int, schedule: Schedule, consumed: int) -> None:
    """Tell Lightning how many batches of the resumed epoch are behind us, in batches of this run.

    It counts in batches of the run that was interrupted. Those were of another size if the number
    of ranks or the batch size has changed; otherwise nothing changes here.
    """
    if trainer is None or not trainer.fit_loop.restarting:
        return
    count = trainer.fit_loop.epoch_loop.batch_progress
    behind = num_steps if count.is_last_batch else num_steps - schedule.num_steps(consumed)
    change = behind - count.current.processed
    for field in ("ready", "started", "processed", "completed"):
        setattr(count.current, field, getattr(count.current, field) + change)
