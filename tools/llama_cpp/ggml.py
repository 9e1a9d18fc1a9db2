"""ggml's quantisers through its shared library."""

import ctypes
import os
from pathlib import Path

import numpy as np

# ggml_type numbers, values in a block, bytes of a block.
TYPES = {
    "Q8_0": (8, 32, 34), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24),
    "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210),
}


class Ggml:
    def __init__(self, directory):
        """`directory` holds llama.cpp's shared libraries."""
        self.library = ctypes.CDLL(os.fspath(Path(directory) / "libggml-base.so"))
        self.library.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.library.ggml_quantize_chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
            ctypes.c_void_p,
        ]

    def quantize(self, name, rows, importance=None):
        """Blocks `[rows, bytes]` of `f32` rows `[rows, values]`."""
        number, length, size = TYPES[name]
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        count, width = rows.shape
        out = np.zeros((count, width // length * size), dtype=np.uint8)
        if importance is not None:
            importance = np.ascontiguousarray(importance, dtype=np.float32)
            assert importance.shape == (width,)
        written = self.library.ggml_quantize_chunk(
            number, rows.ctypes.data, out.ctypes.data, 0, count, width,
            None if importance is None else importance.ctypes.data)
        assert written == out.size, (written, out.size)
        return out
