"""The six released families: sizes of the language models, both towers, and every tensor name with its shape and how its
values are drawn (names and shapes as published, values made up)."""

import math
from dataclasses import dataclass, replace

CLIP = "model.vision_tower.vision_tower.vision_model."
AUX = "model.vision_tower_aux."
CLIP_WIDTH, CLIP_LAYERS, CLIP_MLP, PATCH, LOW_RES = 1024, 24, 4096, 14, 336
CONVNEXT_DIMS, CONVNEXT_DEPTHS = (192, 384, 768, 1536), (3, 3, 27, 3)


@dataclass(frozen=True)
class Family:
    name: str
    architecture: str
    base: str
    hidden: int
    inter: int
    layers: int
    heads: int
    kv: int
    head_dim: int
    vocab: int
    theta: float
    positions: int
    bos: int
    eos: int
    pad: int
    eps: float = 1e-5
    act: str = "silu"
    tied: bool = False
    experts: int = 0
    model_type: str | None = None

    @property
    def gemma(self):
        return self.tied


# model_type: what the release says; several say nothing.
FAMILIES = {
    "2b": Family("MGM-2B", "MiniGeminiGemmaForCausalLM", "gemma-2b-it", 2048, 16384, 18, 8, 1, 256, 256000, 1e4, 8192,
                 2, 1, 0, eps=1e-6, act="gelu", tied=True, model_type="mgm_gemma"),
    "7b": Family("MGM-7B", "MiniGeminiLlamaForCausalLM", "vicuna-7b-v1.5", 4096, 11008, 32, 32, 32, 128, 32000, 1e4, 4096,
                 1, 2, 0),
    "13b": Family("MGM-13B", "MiniGeminiLlamaForCausalLM", "vicuna-13b-v1.5", 5120, 13824, 40, 40, 40, 128, 32000, 1e4, 4096,
                  1, 2, 0),
    "8b": Family("MGM-8B", "MiniGeminiLlamaForCausalLM", "Meta-Llama-3-8B-Instruct", 4096, 14336, 32, 32, 8, 128, 128256,
                 5e5, 8192, 128000, 128001, 128002, model_type="mgm"),
    "8x7b": Family("MGM-8x7B", "MiniGeminiMixtralForCausalLM", "Mixtral-8x7B-Instruct-v0.1", 4096, 14336, 32, 32, 8, 128,
                   32000, 1e6, 32768, 1, 2, 0, experts=8),
    "34b": Family("MGM-34B", "MiniGeminiLlamaForCausalLM", "Nous-Hermes-2-Yi-34B", 7168, 20480, 60, 56, 8, 128, 64000, 5e6,
                  4096, 1, 7, 0, model_type="mgm"),
}


@dataclass(frozen=True)
class Draw:
    """One tensor: normal values of this mean and deviation. `same_as` names a tensor that is stored a second time."""

    name: str
    shape: tuple
    std: float
    mean: float = 0.0
    same_as: str | None = None


def linear(name, out_features, in_features, bias=True, gain=1.0):
    yield Draw(name + ".weight", (out_features, in_features), gain / math.sqrt(in_features))
    if bias:
        yield Draw(name + ".bias", (out_features,), 0.2 * gain)


def layer_norm(name, channels):
    yield Draw(name + ".weight", (channels,), 0.2, 1.0)
    yield Draw(name + ".bias", (channels,), 0.2)


def decoder_tensors(family, layers):
    """Deviations as in the small fixtures: activations stay of order one, and strong blocks keep a tied head from repeating
    its input."""
    mean = 0.0 if family.gemma else 1.0
    hidden, heads = family.hidden, family.heads * family.head_dim
    yield Draw("model.embed_tokens.weight", (family.vocab, hidden), 1.0 / math.sqrt(hidden) if family.gemma else 1.0)
    for i in range(layers):
        p = f"model.layers.{i}."
        yield from linear(p + "self_attn.q_proj", heads, hidden, False, 1.5)
        yield from linear(p + "self_attn.k_proj", family.kv * family.head_dim, hidden, False, 1.5)
        yield from linear(p + "self_attn.v_proj", family.kv * family.head_dim, hidden, False, 1.5)
        yield from linear(p + "self_attn.o_proj", hidden, heads, False, 2.5 if family.gemma else 1.5)
        if family.experts:
            moe = p + "block_sparse_moe."
            yield from linear(moe + "gate", family.experts, hidden, False, 2.0)
            for e in range(family.experts):
                yield from linear(f"{moe}experts.{e}.w1", family.inter, hidden, False)
                yield from linear(f"{moe}experts.{e}.w2", hidden, family.inter, False, 3.0)
                yield from linear(f"{moe}experts.{e}.w3", family.inter, hidden, False)
        else:
            yield from linear(p + "mlp.gate_proj", family.inter, hidden, False, 1.5)
            yield from linear(p + "mlp.up_proj", family.inter, hidden, False, 1.5)
            yield from linear(p + "mlp.down_proj", hidden, family.inter, False, 3.0 if family.gemma else 2.0)
        yield Draw(p + "input_layernorm.weight", (hidden,), 0.2, mean)
        yield Draw(p + "post_attention_layernorm.weight", (hidden,), 0.2, mean)
    yield Draw("model.norm.weight", (hidden,), 0.2, mean)


def clip_tensors():
    width = CLIP_WIDTH
    yield Draw(CLIP + "embeddings.class_embedding", (width,), 1.0)
    yield Draw(CLIP + "embeddings.patch_embedding.weight", (width, 3, PATCH, PATCH), 2.0 / math.sqrt(3 * PATCH * PATCH))
    yield Draw(CLIP + "embeddings.position_embedding.weight", ((LOW_RES // PATCH) ** 2 + 1, width), 0.5)
    yield from layer_norm(CLIP + "pre_layrnorm", width)
    for i in range(CLIP_LAYERS):
        p = f"{CLIP}encoder.layers.{i}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from linear(p + "self_attn." + name, width, width)
        yield from layer_norm(p + "layer_norm1", width)
        yield from linear(p + "mlp.fc1", CLIP_MLP, width)
        yield from linear(p + "mlp.fc2", width, CLIP_MLP)
        yield from layer_norm(p + "layer_norm2", width)
    yield from layer_norm(CLIP + "post_layernorm", width)


def convnext_tensors():
    dims = CONVNEXT_DIMS
    yield Draw(AUX + "vision_stem.0.weight", (dims[0], 3, 4, 4), 1.0 / math.sqrt(48))
    yield Draw(AUX + "vision_stem.0.bias", (dims[0],), 0.2)
    yield from layer_norm(AUX + "vision_stem.1", dims[0])
    for s, (channels, depth) in enumerate(zip(dims, CONVNEXT_DEPTHS)):
        stage = f"{AUX}vision_stages.{s}."
        if s > 0:
            yield from layer_norm(stage + "downsample.0", dims[s - 1])
            yield Draw(stage + "downsample.1.weight", (channels, dims[s - 1], 2, 2), 1.0 / math.sqrt(4 * dims[s - 1]))
            yield Draw(stage + "downsample.1.bias", (channels,), 0.2)
        for i in range(depth):
            block = f"{stage}blocks.{i}."
            yield Draw(block + "gamma", (channels,), 0.1, 0.3)
            yield Draw(block + "conv_dw.weight", (channels, 1, 7, 7), 1.0 / 7.0)
            yield Draw(block + "conv_dw.bias", (channels,), 0.2)
            yield from layer_norm(block + "norm", channels)
            yield from linear(block + "mlp.fc1", 4 * channels, channels)
            yield from linear(block + "mlp.fc2", channels, 4 * channels, True, 1.5)


def mining_tensors():
    for name, width in (("query", CLIP_WIDTH), ("aux", sum(CONVNEXT_DIMS)), ("val", sum(CONVNEXT_DIMS))):
        yield from layer_norm(f"model.vlm_uni_{name}_projector.0", width)
        yield from linear(f"model.vlm_uni_{name}_projector.1", CLIP_WIDTH, width, True, 1.5)


def projector_tensors(family):
    yield from linear("model.mm_projector.0", family.hidden, CLIP_WIDTH)
    # Visual tokens of the size of text embeddings, so that neither drowns the other; Gemma scales both by sqrt(hidden).
    yield from linear("model.mm_projector.2", family.hidden, family.hidden, True, 0.05 if family.gemma else 1.0)


def is_tower(name):
    return name.startswith(("model.vision_tower.", AUX))


def is_vision(name):
    return is_tower(name) or name.startswith(("model.vlm_uni_", "model.mm_projector."))


def checkpoint_tensors(family, layers, vision=True):
    """All tensors in the order in which the model classes hold them."""
    yield from decoder_tensors(family, layers)
    if vision:
        yield from clip_tensors()
        yield from convnext_tensors()
        yield from projector_tensors(family)
        yield from mining_tensors()
    # Gemma's head is stored although it is the embedding.
    if family.tied:
        embedding = next(decoder_tensors(family, 0))
        yield replace(embedding, name="lm_head.weight", same_as=embedding.name)
    else:
        yield Draw("lm_head.weight", (family.vocab, family.hidden), 2.0 / math.sqrt(family.hidden))


def language_config(family, layers):
    """The keys that a Hugging Face language model's config.json has."""
    config = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": family.bos,
        "eos_token_id": family.eos,
        "hidden_act": family.act,
        "hidden_size": family.hidden,
        "initializer_range": 0.02,
        "intermediate_size": family.inter,
        "max_position_embeddings": family.positions,
        "num_attention_heads": family.heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": family.kv,
        "pad_token_id": family.pad,
        "rms_norm_eps": family.eps,
        "rope_theta": family.theta,
        "tie_word_embeddings": family.tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.36.2",
        "use_cache": True,
        "vocab_size": family.vocab,
    }
    if family.gemma:
        config["head_dim"] = family.head_dim
    else:
        config["pretraining_tp"] = 1
        config["rope_scaling"] = None
    if family.experts:
        config |= {
            "num_experts_per_tok": 2, "num_local_experts": family.experts, "output_router_logits": False,
            "router_aux_loss_coef": 0.02, "sliding_window": None,
        }
    return config


def mini_gemini_config(family, layers, hd):
    """config.json as released."""
    config = {
        "_name_or_path": f"model_zoo/LLM/{family.base}",
        "architectures": [family.architecture],
        "aux_img_fold": False,
        "aux_with_fpn": False,
        "freeze_mm_mlp_adapter": False,
        "image_aspect_ratio": "pad",
        "image_global": hd,
        "image_grid": 2 if hd else 1,
        "image_grid_pinpoints": None,
        "image_size_aux": 1536 if hd else 768,
        "mm_hidden_size": CLIP_WIDTH,
        "mm_hidden_size_aux": sum(CONVNEXT_DIMS),
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "model_zoo/OpenAI/clip-vit-large-patch14-336",
        "mm_vision_tower_aux": "model_zoo/OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup",
        "optimize_vision_tower": False,
        "optimize_vision_tower_aux": False,
        "tokenizer_model_max_length": 4096 if hd else 2048,
        "tokenizer_padding_side": "right",
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
        "video_grid": -1,
        **language_config(family, layers),
    }
    if family.model_type and not hd:
        config["model_type"] = family.model_type
    return config


def base_config(family, layers):
    """config.json of the language model a stage-1 folder is put on."""
    kind = "gemma" if family.gemma else "mixtral" if family.experts else "llama"
    return {"architectures": [f"{kind.capitalize()}ForCausalLM"], "model_type": kind, **language_config(family, layers)}
