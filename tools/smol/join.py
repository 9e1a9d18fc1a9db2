"""A run's adapter over an older one: tensors that the run did not train are kept.

    python tools/smol/join.py OLD.safetensors RUN.safetensors OUT.safetensors
"""

import sys

from safetensors import safe_open
from safetensors.torch import load_file, save

from common import write_bytes


def main():
    old, run, out = sys.argv[1:]
    tensors = {**load_file(old), **load_file(run)}
    with safe_open(run, "pt") as file:
        metadata = file.metadata()
    write_bytes(out, save(tensors, metadata))


if __name__ == "__main__":
    main()
