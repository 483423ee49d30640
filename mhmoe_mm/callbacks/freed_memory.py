"""Keep freed memory with the process instead of handing it back to the system."""

import ctypes
from typing import ClassVar

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info


class KeepFreedMemory(Callback):
    """Tells glibc's allocator to keep freed blocks, for training on a CPU.

    By default glibc returns every large freed block to the system, so that each large temporary of
    each step starts on fresh pages; keeping them spares that, at the price of
    memory that stays at its high-water mark. This is a choice for the whole process, hence a
    callback that a configuration names and not something done on import. It can not be undone.
    Where there is no glibc (macOS, musl) it says so and changes nothing.
    """

    TRIM_THRESHOLD: ClassVar[int] = -1
    MMAP_THRESHOLD: ClassVar[int] = -3

    def __init__(self, block_mib: int = 1024) -> None:
        """`block_mib`: blocks up to this size are kept; larger ones go back to the system."""
        super().__init__()
        if not 1 <= block_mib <= 2047:
            raise ValueError(f"block_mib must lie in 1..2047, got {block_mib}.")
        self.block_mib = block_mib

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.keep()

    def keep(self) -> None:
        """Tell the allocator now."""
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        kept = mallopt is not None and (
            mallopt(self.MMAP_THRESHOLD, self.block_mib << 20) == 1
            and mallopt(self.TRIM_THRESHOLD, 2**31 - 1) == 1
        )
        if not kept:
            rank_zero_info("This system's allocator takes no advice: freed memory is not kept.")
