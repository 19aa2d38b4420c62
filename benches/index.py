"""Indexes of the table: build time, size, recall and query time, by kind and by number of rows.

`python -m benches.index` · ten minutes on one core; `--rows 100000`: one

Rows are synthetic: embeddings of 128 numbers in a thousand clusters, similar to recordings. soundlake builds IVF_FLAT
with √rows partitions and searches 16 of them. The other kinds are smaller: they compare quantised vectors first, and
then the exact vectors of the nearest candidates (refined).
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benches.harness import Figure, pin, report

ROWS, PART, SIZE, CLUSTERS, BATCH = 1_000_000, 4, 128, 1000, 50_000
QUERIES, K = 100, 10
# Kind, its options, partitions that a query searches, and the refine factor: it times K rows are compared exactly.
KINDS: tuple[tuple[str, dict[str, Any], int, int], ...] = (
    ("IVF_FLAT", {}, 16, 0),
    ("IVF_SQ", {}, 16, 2),
    ("IVF_RQ", {}, 16, 4),
)


def made(folder: str, count: int) -> Any:
    """Write a table of `count` embeddings."""
    import lance

    centres = np.random.default_rng(0).standard_normal((CLUSTERS, SIZE), np.float32)
    schema = pa.schema([("id", pa.int64()), ("embedding", pa.list_(pa.float32(), SIZE))])

    def batches() -> Any:
        for first in range(0, count, BATCH):
            drawn = np.random.default_rng(first + 1)
            size = min(BATCH, count - first)
            values = centres[drawn.integers(0, CLUSTERS, size)]
            values = (values + 0.5 * drawn.standard_normal((size, SIZE), np.float32)).astype(np.float32)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), SIZE)
            yield pa.record_batch([pa.array(np.arange(first, first + size)), vectors], schema=schema)

    return lance.write_dataset(batches(), f"{folder}/{count}.lance", schema=schema)


def asked(dataset: Any, vector: Any, **how: Any) -> list[int]:
    """Ids of the rows nearest to a vector."""
    query = {"column": "embedding", "q": vector, "k": K, "metric": "l2", **how}
    return list(dataset.to_table(columns=["id", "_distance"], nearest=query)["id"].to_pylist())


def measured(dataset: Any, kind: str, needs: dict[str, Any], parts: int, refined: int) -> dict[str, float]:
    """Build an index; return CPU seconds, bytes per row, recall, and milliseconds per query."""
    count = dataset.count_rows()
    began = time.process_time()
    dataset.create_index(
        "embedding", kind, name="i", metric="l2", num_partitions=round(count**0.5), replace=True, **needs
    )
    seconds = time.process_time() - began
    size = sum(path.stat().st_size for path in Path(dataset.uri, "_indices").rglob("*") if path.is_file())
    picked = np.linspace(0, count - 1, QUERIES).astype(int).tolist()
    vectors = [np.array(values) for values in dataset.take(picked, columns=["embedding"])["embedding"].to_pylist()]
    how: dict[str, Any] = {"nprobes": parts} | ({"refine_factor": refined} if refined else {})
    hits, took = 0, []
    for vector in vectors:
        began = time.perf_counter()
        ids = asked(dataset, vector, **how)
        took.append(time.perf_counter() - began)
        hits += len(set(ids) & set(asked(dataset, vector, use_index=False)))
    dataset.drop_index("i")
    shutil.rmtree(Path(dataset.uri, "_indices"))
    return {
        "CPU seconds": seconds,
        "bytes a row": size / count,
        f"recall at {K}": hits / (K * QUERIES),
        "ms a query": float(np.median(took)) * 1e3,
    }


def main() -> None:
    """Measure; print and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=ROWS)
    count = parser.parse_args().rows
    os.environ |= {"LANCE_LOG": "error", "OMP_NUM_THREADS": "1"}
    pin(1)
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in (count // PART, count):
            dataset = made(folder, rows)
            for kind, needs, parts, refined in KINDS:
                for what, value in measured(dataset, kind, needs, parts, refined).items():
                    note = f"{parts} parts, refined {refined}" if refined else f"{parts} parts"
                    figures.append(Figure(f"{rows:,} rows, {kind}: {what}", value, value, value, note=note))
                    print(figures[-1].what, f"{value:.4g}", flush=True)
    report("index", f"Indices of embeddings of {SIZE} numbers, one core", figures)


if __name__ == "__main__":
    main()
