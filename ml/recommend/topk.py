"""The largest values of each row, of dense and of sparse matrices."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def best_of_rows(keys: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest finite values of each row, largest first; of equals the column further left.

    Args:
        keys: (n, m) float32, minus infinity where a column is not to be had.
        k: how many.

    Returns:
        Columns (-1 where there are no more) and values (minus infinity there), both (n, min(k, m)).
    """
    n, m = keys.shape
    width = min(k, m)
    if not n or not width:
        return np.full((n, width), -1), np.full((n, width), -np.inf)
    is_in = keys > -np.inf
    if k < m:
        limits = np.partition(keys, m - k, axis=1)[:, m - k]
        np.logical_and(is_in, keys >= limits[:, None], out=is_in)
    flat = np.flatnonzero(is_in)
    rows, columns = np.divmod(flat, m)
    values = keys.ravel()[flat]
    order = np.lexsort((columns, -values, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    starts = np.searchsorted(rows, np.arange(n))
    place = np.arange(len(rows)) - starts[rows]
    keep = place < width
    top = np.full((n, width), -1)
    top_keys = np.full((n, width), -np.inf)
    top[rows[keep], place[keep]] = columns[keep]
    top_keys[rows[keep], place[keep]] = values[keep]
    return top, top_keys


def largest_of_rows(matrix: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """The `count` largest values above 0 of each row; of equals, the column further left.

    One sort of one integer a value: row, then the value from large to small, then the column. The bits of
    floating point numbers that are not negative are in the order of the numbers.

    Args:
        matrix: CSR float32, no value below 0, rows times columns below 2**32.
        count: how many to keep.
    """
    rows = np.repeat(np.arange(len(matrix.indptr) - 1), np.diff(matrix.indptr))
    n_columns = int(matrix.shape[1])  # pyright: ignore[reportOptionalSubscript]
    width = np.uint64(max(1, n_columns - 1).bit_length())
    falling = np.uint64(0xFFFF_FFFF) - matrix.data.view(np.uint32)
    keys = (rows.astype(np.uint64) << (np.uint64(32) + width)) | (falling << width)
    keys |= matrix.indices.astype(np.uint64)
    keys.sort()
    place = np.arange(len(keys)) - np.repeat(matrix.indptr[:-1], np.diff(matrix.indptr))
    keys = keys[place < count]
    values = np.uint64(0xFFFF_FFFF) - ((keys >> width) & np.uint64(0xFFFF_FFFF))
    values = values.astype(np.uint32).view(np.float32)
    row = (keys >> (np.uint64(32) + width)).astype(np.int64)
    column = (keys & ((np.uint64(1) << width) - np.uint64(1))).astype(np.int64)
    above = values > 0
    return sparse.csr_matrix((values[above], (row[above], column[above])), shape=matrix.shape)
