"""Keeping freed memory: asked of the allocator, and refused where it makes no sense."""

import ctypes
import multiprocessing
import resource
from multiprocessing.connection import Connection

import pytest
from lightning.pytorch import LightningModule, Trainer

from mhmoe_mm.callbacks.freed_memory import KeepFreedMemory


def page_faults_of_a_second_block(libc: ctypes.CDLL, size: int = 61 << 20) -> int:
    """New pages that the process touches for a block when one as large was freed just before."""
    counts = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = libc.malloc(size)
        ctypes.memset(block, 1, size)
        libc.free(block)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return counts[1]


def measure(sender: Connection) -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    given_back = page_faults_of_a_second_block(libc)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    KeepFreedMemory().setup(trainer, LightningModule(), "fit")
    sender.send((given_back, page_faults_of_a_second_block(libc)))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_a_block_as_large_as_one_freed_before_costs_no_new_pages():
    receiver, sender = multiprocessing.Pipe(duplex=False)
    # A process of its own, because the allocator does not forget what it was told.
    process = multiprocessing.get_context("spawn").Process(target=measure, args=(sender,))
    process.start()
    given_back, kept = receiver.recv()
    process.join()
    assert given_back > 0
    assert kept * 10 < given_back


@pytest.mark.parametrize("size", [0, 2048])
def test_a_size_the_allocator_cannot_take_is_refused(size: int):
    with pytest.raises(ValueError, match=f"got {size}"):
        KeepFreedMemory(size)
