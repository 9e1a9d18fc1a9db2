"""What transformers, timm and the plain formula of mining make of a checkpoint of make_checkpoint.py, in f32.

    python reference.py MODEL OUT.safetensors [--pair FILE.gguf] [--adapter DIR] [--features FILE]

Reads the sharded safetensors form; with --pair the tensors of a GGUF pair of it instead, decoded by the gguf library. OUT holds
what goes in and what has to come out:

    high_res [2,3,S,S], low_res [2,views,3,336,336]   two made pictures, normalised, and the views derived from them
    text.ids, image.ids, pair.ids                     prompts with no, one and two pictures; -200 stands for one
    tokens [2*576 or 2*2880, hidden]                  visual tokens of both
    text.logits, image.logits, pair.logits            [rows, vocab]: all rows of the text prompt, the last rows of the others
    bf16.*                                            all this with weights and activations in bf16: the yardstick of its rounding
    erf.text.logits                                   Gemma with the numerics of transformers 4.38
    adapter.text.logits, adapter.tokens               with the PEFT folder, applied by the peft library
    merged.text.logits                                the same, the sum rounded to bf16

--features keeps what comes before the projector, which is the same for all families (same seed, same towers).
Needs: torch, transformers >= 5, timm, accelerate, peft, safetensors, gguf.
"""

import argparse
import gc
import json
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from timm.models.convnext import ConvNeXt
from transformers import (
    CLIPVisionConfig, CLIPVisionModel, GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig,
    MixtralForCausalLM,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures"))
from model_common import image_values, make_images, mine, projector  # noqa: E402

from families import AUX, CLIP, CLIP_LAYERS, CLIP_MLP, CLIP_WIDTH, CONVNEXT_DEPTHS, CONVNEXT_DIMS, LOW_RES, PATCH  # noqa: E402
from gguf_pair import Pair  # noqa: E402
from tensor_files import Checkpoint  # noqa: E402

IMAGE = -200
IMAGE_ROWS = 16
PICTURES = 2
BF16 = torch.bfloat16


def assign(module, state):
    """Takes the tensors as they are, refusing missing and unexpected names."""
    result = module.load_state_dict(state, strict=False, assign=True)
    missing = [n for n in result.missing_keys if "position_ids" not in n and "embed_scale" not in n]
    assert not missing and not result.unexpected_keys, (missing[:4], result.unexpected_keys[:4])
    return module.eval().requires_grad_(False)


# ----------------------------------------------------------------------------------------------- vision


def low_res_views(high_res, grid):
    """The official derivation from the normalised picture."""
    size = LOW_RES * grid
    small = F.interpolate(high_res[None], size=(size, size), mode="bilinear", align_corners=False)
    if grid == 1:
        return small
    crops = small[0].reshape(3, grid, LOW_RES, grid, LOW_RES).permute(1, 3, 0, 2, 4).reshape(-1, 3, LOW_RES, LOW_RES)
    return torch.cat([crops, F.interpolate(small, size=(LOW_RES, LOW_RES), mode="bilinear", align_corners=False)])


def clip_tower(checkpoint):
    config = CLIPVisionConfig(
        hidden_size=CLIP_WIDTH, intermediate_size=CLIP_MLP, num_hidden_layers=CLIP_LAYERS, num_attention_heads=CLIP_WIDTH // 64,
        image_size=LOW_RES, patch_size=PATCH, hidden_act="quick_gelu", layer_norm_eps=1e-5, attn_implementation="eager",
    )
    with init_empty_weights(include_buffers=False):
        model = CLIPVisionModel(config)
    prefix = "vision_model." if any(n.startswith("vision_model.") for n in model.state_dict()) else ""
    state = {prefix + n.removeprefix(CLIP): checkpoint.get(n).float() for n in checkpoint.names() if n.startswith(CLIP)}
    return assign(model, state)


def convnext_trunk(checkpoint):
    model = ConvNeXt(depths=CONVNEXT_DEPTHS, dims=CONVNEXT_DIMS, num_classes=0)
    model.norm_pre = model.head = torch.nn.Identity()
    return assign(model, {
        n.removeprefix(AUX).removeprefix("vision_"): checkpoint.get(n).float()
        for n in checkpoint.names() if n.startswith(AUX)
    })


def bilinear(maps, **size):
    """Resized in f32 and rounded back, as in the official code."""
    return F.interpolate(maps.float(), **size, mode="bilinear", align_corners=False).to(maps.dtype)


def high_res_map(trunk, picture):
    x, stages = trunk.stem(picture), []
    for stage in trunk.stages:
        x = stage(x)
        stages.append(x)
    size = stages[0].shape[-2:]
    return torch.cat([stages[0], *(bilinear(s, size=size) for s in stages[1:])], 1)


def picture_features(clip, trunk, w, high_res, views):
    """What the projector gets of one picture: [576, 1024], or [2880, 1024] with the overview first."""
    low = clip(views, output_hidden_states=True).hidden_states[-2][:, 1:]
    cells = high_res_map(trunk, high_res[None])
    if len(views) == 1:
        return (low + mine(w, low, cells))[0]
    overview = bilinear(cells, scale_factor=0.5)
    channels, half = cells.shape[1], cells.shape[2] // 2
    crops = cells.reshape(channels, 2, half, 2, half).permute(1, 3, 0, 2, 4).flatten(0, 1)
    parts = [low[4:] + mine(w, low[4:], overview)]
    # One view at a time: keys and values of all would not fit everywhere.
    parts += [low[i : i + 1] + mine(w, low[i : i + 1], crops[i : i + 1]) for i in range(4)]
    return torch.cat(parts, 1)[0]


def all_features(checkpoint, high_res, low_res):
    """Of all pictures, [pictures, tokens, 1024], in f32 and in bf16."""
    clip, trunk = clip_tower(checkpoint), convnext_trunk(checkpoint)
    w = {n: checkpoint.get(n).float() for n in checkpoint.names() if n.startswith("model.vlm_uni_")}
    out = {}
    for name, dtype in (("features", torch.float32), ("bf16.features", BF16)):
        clip, trunk = clip.to(dtype), trunk.to(dtype)
        cast = {n: value.to(dtype) for n, value in w.items()}
        pairs = zip(high_res.to(dtype), low_res.to(dtype))
        out[name] = torch.stack([picture_features(clip, trunk, cast, *pair) for pair in pairs])
    return out


# --------------------------------------------------------------------------------------------- language


def decoder(config, checkpoint):
    common = dict(
        vocab_size=config["vocab_size"], hidden_size=config["hidden_size"], intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"], num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_key_value_heads"], rms_norm_eps=config["rms_norm_eps"],
        max_position_embeddings=config["max_position_embeddings"], tie_word_embeddings=config["tie_word_embeddings"],
        rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
        bos_token_id=config["bos_token_id"], eos_token_id=config["eos_token_id"], pad_token_id=config["pad_token_id"],
        attn_implementation="eager",
    )
    experts = config.get("num_local_experts", 0)
    with init_empty_weights(include_buffers=False):
        if "Gemma" in config["architectures"][0]:
            # The release says "gelu", which transformers >= 4.39 reads as the tanh form.
            model = GemmaForCausalLM(GemmaConfig(**common, head_dim=config["head_dim"], hidden_act="gelu_pytorch_tanh"))
        elif experts:
            mixtral = MixtralConfig(**common, hidden_act="silu", sliding_window=None, num_local_experts=experts, num_experts_per_tok=2)
            mixtral._experts_implementation = "eager"
            model = MixtralForCausalLM(mixtral)
        else:
            model = LlamaForCausalLM(LlamaConfig(**common, hidden_act="silu"))
    state = {
        n: checkpoint.get(n).float() for n in checkpoint.names()
        if n.startswith(("model.embed_tokens", "model.layers.", "model.norm", "lm_head")) and ".experts." not in n
    }
    if config["tie_word_embeddings"]:
        stored = state.pop("lm_head.weight", None)
        assert stored is None or torch.equal(stored, state["model.embed_tokens.weight"])
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    if experts:
        # Today's class keeps the experts of a layer in two tensors.
        inter = config["intermediate_size"]
        for i in range(config["num_hidden_layers"]):
            old, new = f"model.layers.{i}.block_sparse_moe.", f"model.layers.{i}.mlp."
            state[new + "gate.weight"] = state.pop(old + "gate.weight")
            gate_up = torch.empty(experts, 2 * inter, config["hidden_size"])
            down = torch.empty(experts, config["hidden_size"], inter)
            for e in range(experts):
                gate_up[e, :inter] = checkpoint.get(f"{old}experts.{e}.w1.weight")
                gate_up[e, inter:] = checkpoint.get(f"{old}experts.{e}.w3.weight")
                down[e] = checkpoint.get(f"{old}experts.{e}.w2.weight")
            state[new + "experts.gate_up_proj"], state[new + "experts.down_proj"] = gate_up, down
    assign(model, state)
    if config["tie_word_embeddings"]:
        # One parameter again, so that a cast does not make it two.
        model.lm_head.weight = model.model.embed_tokens.weight
    return model


def embed(model, config, ids, tokens=None):
    """Embeddings of a prompt; Gemma scales text and visual tokens alike (by the embedding layer's own factor)."""
    table, images = model.model.embed_tokens.weight, iter(() if tokens is None else tokens)
    scale = config["hidden_size"] ** 0.5 if "Gemma" in config["architectures"][0] else 1.0
    parts = [next(images) if i == IMAGE else table[i][None] for i in ids.tolist()]
    return (torch.cat(parts) * scale)[None]


def logits(model, config, ids, tokens=None, rows=None):
    """Of the last `rows` rows."""
    hidden = model.model(inputs_embeds=embed(model, config, ids, tokens), use_cache=False).last_hidden_state[0]
    return model.lm_head(hidden[-rows:] if rows else hidden).float()


def set_parameters(model, dtype):
    """The parameters alone: the rotary frequencies stay f32, as they do when a model is loaded in bf16."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def results(model, config, ids, w, features):
    """Visual tokens and logits of all prompts in the dtype of `w` and `features`, which has to be the model's."""
    tokens = projector(w, features)
    out = {"tokens": tokens.flatten(0, 1).float(), "text.logits": logits(model, config, ids["text"])}
    for name in ("image", "pair"):
        out[name + ".logits"] = logits(model, config, ids[name], tokens, IMAGE_ROWS)
    return out


def prompts(config, seed=3):
    generator = torch.Generator().manual_seed(seed)

    def words(count):
        return torch.randint(300, min(31000, config["vocab_size"]), (count,), generator=generator).tolist()

    # Yi puts no BOS in front of a prompt.
    begin = [] if config["vocab_size"] == 64000 else [config["bos_token_id"]]
    prompts = {
        "text": begin + words(24), "image": begin + words(6) + [IMAGE] + words(12),
        "pair": begin + words(4) + [IMAGE] + words(5) + [IMAGE] + words(12),
    }
    return {name: torch.tensor(ids) for name, ids in prompts.items()}


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pair", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--features", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count())

    config = json.loads((arguments.model / "config.json").read_text())
    checkpoint = Pair(arguments.pair, config) if arguments.pair else Checkpoint(arguments.model)
    high_res = image_values(make_images(PICTURES, config["image_size_aux"], 7)).float()
    low_res = torch.stack([low_res_views(picture, config["image_grid"]) for picture in high_res])
    if arguments.features and arguments.features.exists():
        features = load_file(arguments.features)
    else:
        features = all_features(checkpoint, high_res, low_res)
        if arguments.features:
            save_file(features, arguments.features)
    gc.collect()
    w = {n: checkpoint.get(n).float() for n in checkpoint.names() if n.startswith("model.mm_projector.")}

    ids = prompts(config)
    model = decoder(config, checkpoint)
    out = {"high_res": high_res, "low_res": low_res, **{f"{name}.ids": value for name, value in ids.items()}}
    out |= results(model, config, ids, w, features["features"])
    # The weights are bf16 already, or are not needed afterwards.
    set_parameters(model, BF16)
    half = results(model, config, ids, {n: value.to(BF16) for n, value in w.items()}, features["bf16.features"])
    out |= {"bf16." + name: value for name, value in half.items()}
    set_parameters(model, torch.float32)
    if "Gemma" in config["architectures"][0] and not arguments.pair:
        def activate(function):
            for layer in model.model.layers:
                layer.mlp.act_fn = function

        tanh = model.model.layers[0].mlp.act_fn
        activate(torch.nn.GELU())
        out["erf.text.logits"] = logits(model, config, ids["text"])
        activate(tanh)
    if arguments.adapter:
        from peft import PeftModel

        peft = PeftModel.from_pretrained(model, arguments.adapter, low_cpu_mem_usage=True).merge_and_unload()
        trained = torch.load(arguments.adapter / "non_lora_trainables.bin", weights_only=True)
        w |= {n.removeprefix("base_model.model."): value.float() for n, value in trained.items()}
        out["adapter.tokens"] = out["merged.tokens"] = projector(w, features["features"]).flatten(0, 1)
        out["adapter.text.logits"] = logits(peft, config, ids["text"])
        set_parameters(peft, BF16)
        set_parameters(peft, torch.float32)
        out["merged.text.logits"] = logits(peft, config, ids["text"])
    for name, value in out.items():
        if name.endswith(("logits", "tokens")):
            print(f"{name}: {tuple(value.shape)}, std {value.std():.2f}, largest {value.abs().max():.2f}")
    save_file({n: v.contiguous().clone() for n, v in out.items()}, arguments.out)


if __name__ == "__main__":
    main()
