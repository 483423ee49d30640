"""Reading a column of `.parquet` files, by the package pyarrow, which is an extra."""

from collections.abc import Callable, Iterator
from pathlib import Path

from tools.build_shards.errors import InputError

ROWS = 1024


def read_parquet(
    path: Path, column: str, advance: Callable[[int], None]
) -> Iterator[tuple[str, str | None]]:
    """(`file row 3`, text) of every row; None where it is null."""
    try:
        import pyarrow as arrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError(
            f"{path} needs the package pyarrow: pip install 'mhmoe-mm[text]'."
        ) from error
    try:
        with ParquetFile(path) as file:
            schema = file.schema_arrow
            if column not in schema.names:
                raise InputError(
                    f"{path} has no column {column!r}; it has: {', '.join(schema.names)}."
                )
            kind = schema.field(column).type
            if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
                raise InputError(f"{path}: the column {column!r} is of {kind}, not of texts.")
            number = 0
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(ROWS, row_groups=[group], columns=[column]):
                    for text in batch.column(0):
                        number += 1
                        yield f"{path} row {number}", text.as_py()
                advance(path.stat().st_size // file.num_row_groups)
    except arrow.ArrowException as error:
        raise InputError(f"{path} cannot be read as parquet ({error}).") from error
