"""Members of an open tar by their offset.

They are read with `pread`: nothing is mapped (a file cut while we read it is an error, not a crash)
and threads share the open file.
"""

import os
from pathlib import Path

import numpy as np

from datamodules.index import ShardError, ShardIndex


class LocalShard:
    """An open tar of known size, from which members are read by offset."""

    def __init__(self, path: Path, index: ShardIndex):
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)  # closed with the last reference to it
        except OSError as error:
            raise ShardError(f"Shard {path} cannot be opened: {error.strerror}.") from error
        found = os.fstat(self._file.fileno()).st_size
        if found != index.bytes:
            raise ShardError(
                f"Shard {path} has {found} bytes but its index says {index.bytes}: it is truncated "
                "or was replaced. Restore it, or index it again if the new content is wanted."
            )

    def read(self, offset: int, length: int) -> np.ndarray:
        """`length` bytes from `offset` as a uint8 array."""
        data = np.empty(length, dtype=np.uint8)
        room = data.data
        done = 0
        while done < length:
            got = os.preadv(self._file.fileno(), [room[done:]], offset + done)
            if got == 0:
                raise ShardError(f"Shard {self.path} was truncated while it was being read.")
            done += got
        return data
