"""Where runs are carried out: how the processors and GPUs of a machine are shared among them."""

import os
from queue import Queue

import torch

from tools.compare.program import Place


def places(jobs: int) -> "Queue[Place]":
    """As many places as runs at a time; with GPUs each has one, the same for several runs only if
    there are more runs than GPUs.
    """
    threads = max(1, num_cpus() // jobs)
    found = gpus()
    free: Queue[Place] = Queue()
    for job in range(jobs):
        free.put(Place(threads, found[job % len(found)] if found else None))
    return free


def num_cpus() -> int:
    """The CPUs that this process may use, under `taskset` fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES has for them."""
    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = str.split(given, ",") if given else [str(number) for number in range(count)]
    return [name.strip() for name in names][:count]
