"""Reading a GGUF pair with the gguf library: every tensor under its name and in its form in the official layout, as f32.

What the language file does to a checkpoint is undone by llama.cpp's conventions, not by this project's code: the rows of queries
and keys that its rotary embedding of `llama` wants alternating, the 1 that is added to Gemma's norms, the experts in one stack.
"""

import gguf
import torch

VISION = (
    ("low_res.clip.", "model.vision_tower.vision_tower.vision_model."), ("high_res.", "model.vision_tower_aux."),
    ("mining.query.", "model.vlm_uni_query_projector."), ("mining.key.", "model.vlm_uni_aux_projector."),
    ("mining.value.", "model.vlm_uni_val_projector."), ("projector.", "model.mm_projector."),
)
LANGUAGE = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "ffn_gate_inp": "block_sparse_moe.gate",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}
TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
EXPERTS = {"ffn_gate_exps": "w1", "ffn_up_exps": "w3", "ffn_down_exps": "w2"}
# Rows decoded at a time: the library's decoders make several copies.
ROWS = 2048


def decode(tensor):
    """All values of a GGUF tensor as f32."""
    shape = tuple(int(axis) for axis in reversed(tensor.shape))
    data = tensor.data.reshape(-1, tensor.data.shape[-1])
    out = torch.empty(data.shape[0], shape[-1])
    for start in range(0, data.shape[0], ROWS):
        part = gguf.dequantize(data[start : start + ROWS], tensor.tensor_type)
        out[start : start + ROWS] = torch.from_numpy(part.copy())
    return out.reshape(shape)


def half_split(rows, heads):
    """From alternating to half-split order in every head."""
    size = rows.shape[0] // heads
    return rows.reshape(heads, size // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


class Pair:
    """The same calls as `tensor_files.Checkpoint`."""

    def __init__(self, language, config):
        self.config = config
        self.stored = {}
        self.read(language, self.language_names)
        self.read(language.with_name("mmproj-" + language.name), self.vision_names)

    def read(self, path, names):
        for tensor in gguf.GGUFReader(str(path)).tensors:
            for name, index in names(tensor.name):
                self.stored[name] = (tensor, index)

    def language_names(self, name):
        if name in TOP:
            return [(TOP[name], None)]
        _, layer, part, kind = name.split(".")
        layer = f"model.layers.{layer}."
        if part in EXPERTS:
            experts = range(self.config["num_local_experts"])
            return [(f"{layer}block_sparse_moe.experts.{e}.{EXPERTS[part]}.{kind}", e) for e in experts]
        return [(f"{layer}{LANGUAGE[part]}.{kind}", None)]

    @staticmethod
    def vision_names(name):
        return [next((long + name.removeprefix(short), None) for short, long in VISION if name.startswith(short))]

    def names(self):
        return list(self.stored)

    def get(self, name):
        tensor, index = self.stored[name]
        if index is not None:
            # One expert of a stack.
            tensor = tensor._replace(shape=tensor.shape[:2], data=tensor.data[index])
        value = decode(tensor)
        gemma = "Gemma" in self.config["architectures"][0]
        if gemma and name.endswith("norm.weight") and name.startswith(("model.layers.", "model.norm")):
            value -= 1
        if not gemma and name.endswith(("self_attn.q_proj.weight", "self_attn.k_proj.weight")) and name.startswith("model.layers."):
            key = "num_attention_heads" if ".q_proj." in name else "num_key_value_heads"
            value = half_split(value, self.config[key])
        return value
