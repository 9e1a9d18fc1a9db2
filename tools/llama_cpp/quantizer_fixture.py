#!/usr/bin/env python3
"""Writes what ggml's quantisers give for a few rows, with and without importances, for the tests of mgm-kernels.

Usage: quantizer_fixture.py LIBRARIES crates/mgm-kernels/tests/fixtures/ggml_quantizers.bin
LIBRARIES is the directory with libggml-base.so (see build.sh). Needs numpy.

The file, little-endian: u32 rows, u32 values in a row, the f32 values, the f32 importances of a row, then for each
format, without and with importances: u32 ggml type, u32 0 or 1, the blocks.
"""

import struct
import sys

import numpy as np

from ggml import TYPES, Ggml


def main():
    ggml = Ggml(sys.argv[1])
    rng = np.random.default_rng(11)
    width = 512
    heavy = 0.05 * rng.standard_t(2.1, width)
    mixed = np.concatenate([
        np.zeros(32), np.full(32, 0.75), np.full(32, -3.0), np.arange(32) - 16.0, np.full(32, 1e-41),
        np.where(np.arange(32) % 2 == 0, 1.0, -1.0), rng.uniform(0.5, 1.0, 32), -rng.uniform(0.9, 1.0, 32),
        np.eye(32)[5] * 40.0, *[rng.normal(0, 10.0 ** rng.uniform(-4, 1), 32) for _ in range(7)],
    ])
    rows = np.stack([rng.normal(0, 0.02, width), heavy, mixed]).astype(np.float32)
    importance = (rng.chisquare(1, width) ** 2).astype(np.float32)
    importance[rng.random(width) < 0.05] = 0.0
    importance[64:96] = 0.0
    with open(sys.argv[2], "wb") as out:
        out.write(struct.pack("<2I", *rows.shape))
        out.write(rows.astype("<f4").tobytes())
        out.write(importance.astype("<f4").tobytes())
        for name, (number, _, _) in TYPES.items():
            for weighted in (0, 1):
                out.write(struct.pack("<2I", number, weighted))
                out.write(ggml.quantize(name, rows, importance if weighted else None).tobytes())


if __name__ == "__main__":
    main()
