#!/usr/bin/env python3
"""Compares our quantisers with ggml's, block by block, and prints a table.

Usage: compare_quantizers.py LIBRARIES [FILE.safetensors ...]

LIBRARIES is the directory with libggml-base.so (build.sh DIR leaves it in DIR/build/bin). Rows come from random
distributions and from the matrices of the files. Needs numpy, gguf, safetensors, and cargo on the path; the example
`quantize_blocks` of mgm-kernels is built. Ends with status 1 when a block differs in Q8_0 or Q4_0, or when an error of
ours is larger than ggml's.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np

from ggml import TYPES, Ggml

ROOT = Path(__file__).resolve().parents[2]


def example():
    """Path of our quantiser."""
    lines = subprocess.run(
        ["cargo", "build", "--release", "-p", "mgm-kernels", "--example", "quantize_blocks",
         "--message-format=json"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    found = [json.loads(line).get("executable") for line in lines]
    return [path for path in found if path][-1]


def random_rows(rng):
    """Named arrays of rows of 512 and 1536 values."""
    def rows(count, width, sample):
        return np.stack([sample(width) for _ in range(count)]).astype(np.float32)

    yield "normal", rows(512, 1536, lambda n: rng.normal(0, 0.02, n))
    yield "uniform", rows(256, 512, lambda n: rng.uniform(-1, 1, n))
    yield "heavy tails", rows(512, 1536, lambda n: 0.02 * rng.standard_t(2.1, n))
    yield "all positive", rows(256, 512, lambda n: np.abs(rng.normal(0.5, 0.2, n)))
    yield "all negative", rows(256, 512, lambda n: -rng.uniform(0.9, 1.0, n))
    yield "scales 1e-9..1e4", rows(512, 512, lambda n: rng.normal(0, 10.0 ** rng.uniform(-9, 4), n))
    yield "half zeros", rows(256, 512, lambda n: rng.normal(0, 1, n) * (rng.random(n) < 0.5))

    def awkward(n):
        parts = []
        for _ in range(n // 16):
            kind = rng.integers(7)
            if kind == 0:
                part = np.zeros(16)
            elif kind == 1:
                part = np.full(16, rng.normal())
            elif kind == 2:
                part = np.arange(16) - 8.0
            elif kind == 3:
                part = np.where(np.arange(16) % 2 == 0, 1.0, -1.0) * rng.choice([1e-3, 0.5, 2.0])
            elif kind == 4:
                part = rng.integers(-31, 32, 16) / 2
            elif kind == 5:
                part = np.eye(16)[rng.integers(16)] * rng.normal(0, 100)
            else:
                part = np.full(16, 10.0 ** rng.uniform(-40, -14)) * rng.choice([-1, 1], 16)
            parts.append(part)
        return np.concatenate(parts)

    yield "awkward", rows(1024, 512, awkward)


def real_rows(path, rng):
    """Up to 2048 rows for each width of the matrices of a safetensors file."""
    from safetensors import safe_open

    widths = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():
            tensor = file.get_tensor(name)
            if tensor.dim() < 2 or not tensor.dtype.is_floating_point:
                continue
            tensor = tensor.float().reshape(tensor.shape[0], -1).numpy()
            width = tensor.shape[1] // 256 * 256
            if width:
                widths.setdefault(width, []).append(tensor[:, :width])
    for width, tensors in sorted(widths.items()):
        rows = np.concatenate(tensors)
        chosen = rng.permutation(len(rows))[:2048]
        yield f"{Path(path).name} {width}", rows[chosen]


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    ggml = Ggml(sys.argv[1])
    program = example()
    rng = np.random.default_rng(7)
    sources = list(random_rows(rng))
    for path in sys.argv[2:]:
        sources += real_rows(path, rng)

    print("| type | importance | rows from | blocks | different | rms error, ggml | rms error, ours | s, ggml | s, ours |")
    print("|---|---|---|---|---|---|---|---|---|")
    failed = False
    totals = {}
    with tempfile.TemporaryDirectory() as directory:
        def run(name, rows, importance):
            paths = [os.path.join(directory, part) for part in ("values", "out", "importance")]
            rows.astype("<f4").tofile(paths[0])
            command = [program, name, str(rows.shape[1]), paths[0], paths[1]]
            if importance is not None:
                importance.astype("<f4").tofile(paths[2])
                command.append(paths[2])
            seconds = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            return np.fromfile(paths[1], dtype=np.uint8).reshape(rows.shape[0], -1), seconds

        for name, (number, _, size) in TYPES.items():
            kind = gguf.GGMLQuantizationType(number)
            for weighted in (False, True):
                for source, rows in sources:
                    importance = None
                    if weighted:
                        importance = (rng.chisquare(1, rows.shape[1]) ** 2).astype(np.float32)
                        importance[rng.random(rows.shape[1]) < 0.02] = 0.0
                    start = time.perf_counter()
                    theirs = ggml.quantize(name, rows, importance)
                    their_seconds = time.perf_counter() - start
                    ours, seconds = run(name, rows, importance)
                    different = int((theirs.reshape(-1, size) != ours.reshape(-1, size)).any(axis=1).sum())
                    weights = 1.0 if importance is None else importance.astype(np.float64)

                    def error(blocks):
                        back = gguf.quants.dequantize(blocks, kind).astype(np.float64)
                        return float(np.sqrt(np.mean(weights * (back - rows) ** 2)))

                    errors = error(theirs), error(ours)
                    failed |= errors[1] > errors[0] or (different > 0 and name in ("Q8_0", "Q4_0"))
                    blocks = theirs.size // size
                    total = totals.setdefault((name, weighted), [0, 0, 0.0, 0.0])
                    for index, value in enumerate((blocks, different, their_seconds, seconds)):
                        total[index] += value
                    print(f"| {name} | {'yes' if weighted else 'no'} | {source} | {blocks} | {different} "
                          f"| {errors[0]:.6g} | {errors[1]:.6g} | {their_seconds:.3f} | {seconds:.3f} |")
    print()
    print("| type | importance | blocks | different | s, ggml (one thread) | s, ours |")
    print("|---|---|---|---|---|---|")
    for (name, weighted), (blocks, different, theirs, ours) in totals.items():
        print(f"| {name} | {'yes' if weighted else 'no'} | {blocks} | {different} | {theirs:.2f} | {ours:.2f} |")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
