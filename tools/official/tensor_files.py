"""Reading and writing tensor files one tensor at a time, so that memory does not grow with the checkpoint."""

import json
import struct
import zlib
from pathlib import Path

import torch
from safetensors import safe_open

DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
CHUNK = 1 << 25


def draw_chunks(draw, seed, dtype):
    """Values of one tensor in pieces. The stream depends on the tensor's name alone, not on what was drawn before it."""
    generator = torch.Generator().manual_seed(seed * 0x9E3779B1 + zlib.crc32((draw.same_as or draw.name).encode()))
    left = torch.Size(draw.shape).numel()
    while left > 0:
        count = min(left, CHUNK)
        yield torch.randn(count, generator=generator).mul_(draw.std).add_(draw.mean).to(dtype)
        left -= count


def raw(tensor):
    return tensor.contiguous().view(torch.uint8).numpy()


def write_safetensors(path, entries):
    """`entries`: (name, shape, dtype, function that yields the values in pieces)."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, dtype, _ in entries:
        size = torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for *_, pieces in entries:
            for piece in pieces():
                file.write(raw(piece).data)
        assert file.tell() == 8 + len(text) + offset


def write_sharded(directory, entries, shard_bytes):
    """Shards of at most `shard_bytes` with their index, or one file if everything fits."""
    shards, size = [[]], 0
    for entry in entries:
        weight = torch.Size(entry[1]).numel() * entry[2].itemsize
        if shards[-1] and size + weight > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += weight
    if len(shards) == 1:
        write_safetensors(directory / "model.safetensors", shards[0])
        return
    index = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(directory / name, shard)
        index |= {entry[0]: name for entry in shard}
    total = sum(torch.Size(shape).numel() * dtype.itemsize for _, shape, dtype, _ in entries)
    write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


class Checkpoint:
    """Tensors of a directory of safetensors files, read when asked for."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.files = {}
        for path in sorted(self.directory.glob("*.safetensors")):
            file = safe_open(path, "pt")
            self.files |= {name: file for name in file.keys()}

    def names(self):
        return list(self.files)

    def get(self, name):
        return self.files[name].get_tensor(name)

    def entry(self, name):
        """For the writers."""
        part = self.files[name].get_slice(name)
        dtype = {code: dtype for dtype, code in DTYPES.items()}[part.get_dtype()]
        return name, tuple(part.get_shape()), dtype, lambda: [self.get(name)]

