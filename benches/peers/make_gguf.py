"""Writes a language model of a released shape with random weights as a GGUF file that llama-bench loads (it needs no tokeniser).

    python make_gguf.py SHAPE TYPE OUT.gguf --ggml DIR

Every matrix is of TYPE, as in `mgm bench --weights TYPE`. DIR holds llama.cpp's shared libraries, whose quantisers make the blocks.
"""

import argparse
import sys
from pathlib import Path

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools/llama_cpp"))
from ggml import TYPES, Ggml  # noqa: E402
from shapes import LANGUAGES  # noqa: E402

PIECE, PIECES = 256, 4096


class Values:
    """Random tensors in a stored type: pieces of a pool of encoded values in random order."""

    def __init__(self, name, directory):
        self.random = np.random.default_rng(1)
        self.name = name
        self.ggml = Ggml(directory) if name in TYPES else None
        self.type = gguf.GGMLQuantizationType[name]

    def pool(self, width):
        values = self.random.uniform(-1, 1, (PIECES, PIECE)).astype(np.float32) * (3.0 / width) ** 0.5
        if self.ggml:
            return self.ggml.quantize(self.name, values)
        if self.name == "BF16":
            return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return values.astype({"F32": np.float32, "F16": np.float16}[self.name]).view(np.uint8)

    def matrix(self, rows, width):
        assert width % PIECE == 0
        order = self.random.integers(0, PIECES, rows * width // PIECE)
        return self.pool(width)[order].reshape(rows, -1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("shape", choices=LANGUAGES)
    parser.add_argument("type", choices=[*TYPES, "F32", "F16", "BF16"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--ggml", type=Path, required=True)
    arguments = parser.parse_args()
    sizes = LANGUAGES[arguments.shape]
    values = Values(arguments.type, arguments.ggml)
    part = arguments.out.with_suffix(".part")
    writer = gguf.GGUFWriter(part, sizes.architecture)
    writer.add_context_length(sizes.positions)
    writer.add_embedding_length(sizes.hidden)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(sizes.inner)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_rope_dimension_count(sizes.head_dim)
    writer.add_vocab_size(sizes.vocabulary)
    writer.add_tokenizer_model("none")

    def matrix(name, rows, width):
        writer.add_tensor(f"{name}.weight", values.matrix(rows, width), raw_dtype=values.type)

    def norm(name):
        writer.add_tensor(f"{name}.weight", np.ones(sizes.hidden, np.float32))

    hidden, inner = sizes.hidden, sizes.inner
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    matrix("token_embd", sizes.vocabulary, hidden)
    norm("output_norm")
    if not sizes.tied:
        matrix("output", sizes.vocabulary, hidden)
    for layer in range(sizes.layers):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm")
        norm(f"{block}.ffn_norm")
        matrix(f"{block}.attn_q", queries, hidden)
        matrix(f"{block}.attn_k", keys, hidden)
        matrix(f"{block}.attn_v", keys, hidden)
        matrix(f"{block}.attn_output", hidden, queries)
        matrix(f"{block}.ffn_gate", inner, hidden)
        matrix(f"{block}.ffn_up", inner, hidden)
        matrix(f"{block}.ffn_down", hidden, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(arguments.out)


if __name__ == "__main__":
    main()
