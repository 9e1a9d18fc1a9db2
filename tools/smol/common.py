"""Shared helpers of the built-in model's data tools: paths, hashes, atomic writes, seeds."""

import argparse
import hashlib
import json
import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL_DIRECTORY = REPOSITORY / "models" / "smol"


def arguments(description):
    """A parser that knows `--data DIR`; paths are relative to the working directory, `data` of the repository by default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, default=REPOSITORY / "data", help="data folder (default: data in the repository)")
    return parser


def sha256(path):
    """Hex digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_hash(path, expected):
    """Stop with one clear line when a file is not the pinned one."""
    found = sha256(path)
    if found != expected:
        raise SystemExit(f"{path}: sha256 {found}, expected {expected}")


def write_bytes(path, content):
    """Write beside the target, then rename, so that an interruption never leaves half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(content)
    os.replace(beside, path)


def write_json(path, value):
    """Compact JSON, one record per line, stable order."""
    if isinstance(value, list):
        text = "[\n" + ",\n".join(json.dumps(v, ensure_ascii=False) for v in value) + "\n]\n"
    else:
        text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    write_bytes(path, text.encode())


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def stable_fraction(key):
    """A number in [0, 1) that depends on the text alone: train/held-out splits by it never move when other data change."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2.0**64


def stable_seed(key):
    """A 63-bit seed from a text, the same on every machine and Python version."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
