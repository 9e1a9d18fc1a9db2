"""Writes a checkpoint of make_checkpoint.py once more in another of the formats people have.

    python make_variant.py MODEL VARIANT OUT

Makes OUT/MGM-… (and what belongs beside it):

    single          one safetensors file
    bin             one torch file
    bin-sharded     several torch files and their index
    towers-outside  no towers in the checkpoint; OUT/model_zoo holds the two folders that its config names, one as Hugging
                    Face's CLIP (its text half included), one as open_clip's file (its text half and heads included)
    stage1          OUT/base, the language model alone, and OUT/stage1 with `mm_projector.bin`
    adapter         OUT/adapter, a PEFT folder of trained adapters with `non_lora_trainables.bin`, for MODEL

Needs: torch, safetensors.
"""

import argparse
import shutil
from pathlib import Path

import torch

from families import AUX, CLIP, CLIP_LAYERS, CLIP_MLP, CLIP_WIDTH, FAMILIES, LOW_RES, PATCH, base_config, is_tower, is_vision
from tensor_files import Checkpoint, write_json, write_safetensors, write_sharded

LORA_RANK, LORA_ALPHA = 8, 16
BIN_SHARDS = 3


def read_json(path):
    import json

    return json.loads(path.read_text())


def family_of(model):
    config = read_json(model / "config.json")
    for family in FAMILIES.values():
        if (family.hidden, family.vocab) == (config["hidden_size"], config["vocab_size"]) and (family.experts > 0) == (
            "num_local_experts" in config
        ):
            return family, config
    raise SystemExit(f"{model}: not a checkpoint of make_checkpoint.py")


def copy_small_files(model, out, skip=()):
    out.mkdir(parents=True, exist_ok=True)
    for path in model.iterdir():
        if not path.name.startswith("model") and path.name not in skip:
            shutil.copyfile(path, out / path.name)


def single(model, checkpoint, out):
    out = out / model.name
    copy_small_files(model, out)
    write_safetensors(out / "model.safetensors", [checkpoint.entry(name) for name in checkpoint.names()])


def one_bin(model, checkpoint, out):
    out = out / model.name
    copy_small_files(model, out)
    torch.save({name: checkpoint.get(name) for name in checkpoint.names()}, out / "pytorch_model.bin")


def sharded_bin(model, checkpoint, out):
    out = out / model.name
    copy_small_files(model, out)
    names = checkpoint.names()
    per_shard, index = -(-len(names) // BIN_SHARDS), {}
    for s in range(BIN_SHARDS):
        name = f"pytorch_model-{s + 1:05d}-of-{BIN_SHARDS:05d}.bin"
        part = names[s * per_shard : (s + 1) * per_shard]
        torch.save({tensor: checkpoint.get(tensor) for tensor in part}, out / name)
        index |= {tensor: name for tensor in part}
    write_json(out / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": index})


def made(*shape, std=0.02):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5)) * std


def towers_outside(model, checkpoint, out):
    config = read_json(model / "config.json")
    inside = out / model.name
    copy_small_files(model, inside)
    names = checkpoint.names()
    write_sharded(inside, [checkpoint.entry(name) for name in names if not is_tower(name)], 5e9)

    # The originals are stored as f32.
    clip = out / config["mm_vision_tower"]
    clip.mkdir(parents=True)
    state = {"vision_model." + n.removeprefix(CLIP): checkpoint.get(n).float() for n in names if n.startswith(CLIP)}
    state["vision_model.embeddings.position_ids"] = torch.arange((LOW_RES // PATCH) ** 2 + 1)[None]
    state |= {
        "logit_scale": torch.tensor(4.6052), "visual_projection.weight": made(768, CLIP_WIDTH),
        "text_projection.weight": made(768, 768), "text_model.embeddings.token_embedding.weight": made(1000, 768),
    }
    torch.save(state, clip / "pytorch_model.bin")
    write_json(clip / "config.json", {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 768, "torch_dtype": "float32",
        "vision_config": {
            "hidden_size": CLIP_WIDTH, "image_size": LOW_RES, "intermediate_size": CLIP_MLP, "model_type": "clip_vision_model",
            "num_attention_heads": 16, "num_hidden_layers": CLIP_LAYERS, "patch_size": PATCH, "projection_dim": 768,
        },
    })

    openclip = out / config["mm_vision_tower_aux"]
    openclip.mkdir(parents=True)
    state = {
        "visual.trunk." + n.removeprefix(AUX).removeprefix("vision_"): checkpoint.get(n).float()
        for n in names if n.startswith(AUX)
    }
    state |= {
        "logit_scale": torch.tensor(4.6052), "text_projection": made(768, 768), "visual.head.mlp.fc1.weight": made(768, 1536),
        "visual.trunk.head.norm.weight": made(1536), "visual.trunk.head.norm.bias": made(1536),
        "token_embedding.weight": made(1000, 768),
    }
    torch.save(state, openclip / "open_clip_pytorch_model.bin")
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    write_json(openclip / "open_clip_config.json", {
        "model_cfg": {"embed_dim": 768, "vision_cfg": {"timm_model_name": "convnext_large", "image_size": 320},
                      "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 16}},
        "preprocess_cfg": {"mean": mean, "std": std},
    })


def stage1(model, checkpoint, out):
    family, config = family_of(model)
    base = out / family.base
    # The base's own files have no idea of pictures.
    copy_small_files(model, base, skip=("config.json",))
    write_json(base / "config.json", base_config(family, config["num_hidden_layers"]))
    names = checkpoint.names()
    write_sharded(base, [checkpoint.entry(n) for n in names if not is_vision(n) and not (family.tied and n == "lm_head.weight")], 5e9)
    first = out / f"{model.name}-Pretrain"
    first.mkdir(parents=True)
    write_json(first / "config.json", config)
    torch.save({name: checkpoint.get(name) for name in names if is_vision(name)}, first / "mm_projector.bin")


def adapter(model, checkpoint, out):
    family, config = family_of(model)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    if not family.experts:
        targets += ["gate_proj", "up_proj", "down_proj"]
    folder = out / "adapter"
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(9)
    # One kind of layer has a rank and a scale of its own.
    ranks, alphas = {"v_proj": 4}, {"v_proj": 12}
    state = {}
    for name in checkpoint.names():
        module = name.removesuffix(".weight")
        kind = module.rsplit(".", 1)[-1]
        if not name.startswith("model.layers.") or kind not in targets:
            continue
        out_features, in_features = checkpoint.entry(name)[1]
        rank = ranks.get(kind, LORA_RANK)
        prefix = f"base_model.model.{module}."
        state[prefix + "lora_A.weight"] = torch.randn(rank, in_features, generator=generator) / in_features**0.5
        state[prefix + "lora_B.weight"] = torch.randn(out_features, rank, generator=generator) * 0.1
    entries = [(n, tuple(w.shape), w.dtype, lambda w=w: [w]) for n, w in state.items()]
    write_safetensors(folder / "adapter_model.safetensors", entries)
    write_json(folder / "adapter_config.json", {
        "alpha_pattern": alphas, "auto_mapping": None, "base_model_name_or_path": str(model), "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "layers_pattern": None,
        "layers_to_transform": None, "lora_alpha": LORA_ALPHA, "lora_dropout": 0.05, "modules_to_save": None, "peft_type": "LORA",
        "r": LORA_RANK, "rank_pattern": ranks, "revision": None, "target_modules": targets, "task_type": "CAUSAL_LM",
        "use_rslora": False,
    })
    trained = {
        "base_model.model." + name: checkpoint.get(name) * 0.75
        for name in checkpoint.names() if name.startswith("model.mm_projector.2.")
    }
    torch.save(trained, folder / "non_lora_trainables.bin")
    write_json(folder / "config.json", config)


VARIANTS = {
    "single": single, "bin": one_bin, "bin-sharded": sharded_bin, "towers-outside": towers_outside, "stage1": stage1,
    "adapter": adapter,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    VARIANTS[arguments.variant](arguments.model, Checkpoint(arguments.model), arguments.out)


if __name__ == "__main__":
    main()
