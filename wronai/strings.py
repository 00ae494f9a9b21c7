"""Strings as Arrow holds them, for the kernels that read their bytes without a copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Texts: TypeAlias = pa.Array | pa.ChunkedArray | Sequence[str]


def array(texts: Texts) -> pa.Array:
    """`texts` as one array with 64-bit offsets; a null counts as empty."""
    whole = texts if isinstance(texts, pa.Array | pa.ChunkedArray) else pa.array(texts, pa.large_string())
    whole = whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole
    return whole.cast(pa.large_string()).fill_null("")


def utf8(texts: Texts) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of all texts in a row, and where each begins, with the end of the last."""
    whole = array(texts)
    _, offsets, data = whole.buffers()
    if not len(whole):
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    return np.frombuffer(data or b"", np.uint8), np.frombuffer(offsets, np.int64, len(whole) + 1, whole.offset * 8)
