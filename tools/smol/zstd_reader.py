"""Zstandard decompression by the `zstd` program, so that no extra Python package is needed."""

import subprocess


def decompress(content):
    """Decompress one frame."""
    return subprocess.run(["zstd", "-dcq"], input=content, stdout=subprocess.PIPE, check=True).stdout
