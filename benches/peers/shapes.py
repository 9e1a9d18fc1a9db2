"""Sizes of the models that are compared (as published)."""

from dataclasses import dataclass

CLIP = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, image_size=336, patch_size=14,
            hidden_act="quick_gelu", projection_dim=768)
CLIP_PATCHES = 24 * 24
CELL_CHANNELS = 192 + 384 + 768 + 1536


@dataclass(frozen=True)
class Language:
    architecture: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    positions: int
    tied: bool


LANGUAGES = {
    "2b": Language("gemma", 2048, 16384, 18, 8, 1, 256, 256000, 8192, True),
    "7b": Language("llama", 4096, 11008, 32, 32, 32, 128, 32000, 4096, False),
    "8b": Language("llama", 4096, 14336, 32, 32, 8, 128, 128256, 8192, False),
}
