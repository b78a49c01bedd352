"""Writing a table chunk by chunk."""

from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

_ROWS_PER_GROUP = 1 << 16
_REPEATING = ["split", "category_id", "supercategory"]


class TableWriter:
    """Parquet file that grows by record batches, in row groups of some ten thousand rows."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._schema = schema
        columns = [name for name in _REPEATING if name in schema.names]
        self._file = pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=columns)
        self._waiting: list[pa.RecordBatch] = []
        self._num_waiting = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()
        self._file.close()

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows."""
        self._waiting.append(batch)
        self._num_waiting += batch.num_rows
        if self._num_waiting >= _ROWS_PER_GROUP:
            self.flush()

    def flush(self) -> None:
        """End the row group."""
        if self._waiting:
            self._file.write_table(pa.Table.from_batches(self._waiting, self._schema))
            self._waiting.clear()
            self._num_waiting = 0
