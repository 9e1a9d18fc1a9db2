"""PyTorch: the pipeline as the official code composes it, from transformers' CLIP and language model and timm's ConvNeXt, random weights.

Prints one JSON object a stage: {"stage", "seconds": [...]}. Called by run.py.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch import nn

from shapes import CELL_CHANNELS, CLIP, CLIP_PATCHES, LANGUAGES

arguments = argparse.ArgumentParser()
arguments.add_argument("--shape", choices=LANGUAGES, default="2b")
arguments.add_argument("--hd", action="store_true")
arguments.add_argument("--dtype", choices=["f32", "bf16"], required=True)
arguments.add_argument("--stages", nargs="+", required=True)
arguments.add_argument("--prefill", type=int, nargs="+", default=[640])
arguments.add_argument("--context", type=int, nargs="+", default=[640])
arguments.add_argument("--question", type=int, default=64)
arguments.add_argument("--runs", type=int, default=5)
arguments.add_argument("--threads", type=int, required=True)
arguments = arguments.parse_args()

torch.set_num_threads(arguments.threads)
torch.manual_seed(1)
DTYPE = {"f32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
VIEWS = 5 if arguments.hd else 1
HIGH_RES = 1536 if arguments.hd else 768


def measure(stage, run, after=lambda: None, runs=arguments.runs):
    """Times `run`, and puts things back with `after`, which does not count."""
    run()
    after()
    seconds = []
    while len(seconds) < runs or (sum(seconds) < 0.3 and len(seconds) < 50):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
        after()
    print(json.dumps({"stage": stage, "seconds": seconds}), flush=True)


def fill(module):
    """Values that keep activations of order one: drawn once and repeated, as drawing billions takes longer than measuring."""
    pool = torch.empty(1 << 20).uniform_(-1, 1)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(False)
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        row = parameter[0].numel()
        flat = parameter.view(-1)
        scaled = (pool * (3.0 / row) ** 0.5).to(parameter.dtype)
        for start in range(0, flat.numel(), pool.numel()):
            end = min(start + pool.numel(), flat.numel())
            flat[start:end] = scaled[: end - start]
    return module.eval()


def clip():
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return fill(CLIPVisionModel(CLIPVisionConfig(**CLIP)).to(DTYPE))


class ConvNext(nn.Module):
    """The four stages of timm's ConvNeXt-L, each resized to the first and all of them concatenated, as the official encoder does."""

    def __init__(self):
        super().__init__()
        import timm

        trunk = timm.create_model("convnext_large", num_classes=0)
        self.stem, self.stages = trunk.stem, trunk.stages

    def maps(self, picture):
        maps, hidden = [], self.stem(picture)
        for stage in self.stages:
            hidden = stage(hidden)
            maps.append(hidden)
        return maps

    def forward(self, picture):
        first, *rest = self.maps(picture)
        size = first.shape[-2:]
        resized = [F.interpolate(m.float(), size=size, mode="bilinear", align_corners=False).to(m.dtype) for m in rest]
        return torch.cat([first, *resized], dim=1).contiguous()


class Mining(nn.Module):
    """Patch info mining and the projector, written as the official code writes them."""

    def __init__(self, hidden):
        super().__init__()
        width = CLIP["hidden_size"]
        self.query = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.key = nn.Sequential(nn.LayerNorm(CELL_CHANNELS), nn.Linear(CELL_CHANNELS, width))
        self.value = nn.Sequential(nn.LayerNorm(CELL_CHANNELS), nn.Linear(CELL_CHANNELS, width))
        self.projector = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))

    def one(self, patches, cells):
        side = int(patches.shape[0] ** 0.5)
        region = cells.shape[-1] // side
        channels = cells.shape[0]
        cells = cells.permute(1, 2, 0).reshape(side, region, side, region, channels).permute(0, 2, 1, 3, 4)
        cells = cells.reshape(side * side, region * region, channels).contiguous()
        query, key, value = self.query(patches), self.key(cells), self.value(cells)
        scores = query[:, None] @ (key.transpose(-1, -2) / key.shape[-1] ** 0.5)
        return (scores.softmax(-1) @ value).squeeze(1)

    def forward(self, patches, cells):
        """Patches `[views, patches, width]`; the map `[channels, rows, columns]`, of which HD crops see a quarter each and the overview
        all of it at half the size."""
        if len(patches) == 1:
            views = [cells]
        else:
            half = cells.shape[-1] // 2
            views = [cells[:, y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
            overview = F.interpolate(cells[None].float(), scale_factor=0.5, mode="bilinear", align_corners=False)
            views.append(overview[0].to(cells.dtype))
        mined = [view + self.one(view, part) for view, part in zip(patches, views)]
        return self.projector(torch.cat(mined))


def language():
    sizes = LANGUAGES[arguments.shape]
    common = dict(
        vocab_size=sizes.vocabulary, hidden_size=sizes.hidden, intermediate_size=sizes.inner, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads, num_key_value_heads=sizes.kv_heads, head_dim=sizes.head_dim,
        max_position_embeddings=sizes.positions, tie_word_embeddings=sizes.tied)
    if sizes.architecture == "gemma":
        from transformers import GemmaConfig, GemmaForCausalLM

        config, model = GemmaConfig(hidden_act="gelu_pytorch_tanh", **common), GemmaForCausalLM
    else:
        from transformers import LlamaConfig, LlamaForCausalLM

        config, model = LlamaConfig(**common), LlamaForCausalLM
    from transformers.initialization import no_init_weights

    torch.set_default_dtype(DTYPE)
    # Drawing billions of values, to be overwritten at once, would take longer than measuring.
    with no_init_weights():
        model = model(config)
    torch.set_default_dtype(torch.float32)
    model.tie_weights()
    return fill(model)


def read(model, embeddings, cache):
    return model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]


def main():
    from transformers import DynamicCache

    wanted = set(arguments.stages)
    whole = "first-token" in wanted
    hidden = LANGUAGES[arguments.shape].hidden
    small = torch.randn(VIEWS, 3, 336, 336).to(DTYPE)
    large = torch.randn(1, 3, HIGH_RES, HIGH_RES).to(DTYPE)
    low_res = clip() if whole or "low-res" in wanted else None
    high_res = fill(ConvNext().to(DTYPE)) if whole or wanted & {"high-res", "mining"} else None
    mining = fill(Mining(hidden).to(DTYPE)) if whole or "mining" in wanted else None

    def patches():
        return low_res(small).last_hidden_state[:, 1:]

    if "low-res" in wanted:
        measure("low-res", patches)
    if "high-res" in wanted:
        measure("high-res", lambda: high_res.maps(large))
    if "mining" in wanted:
        maps = high_res.maps(large)
        seen = torch.randn(VIEWS, CLIP_PATCHES, CLIP["hidden_size"]).to(DTYPE)

        # Resizing and concatenating the maps belongs to mining: ours does both there.
        def mine():
            first, *rest = maps
            resized = [F.interpolate(m.float(), size=first.shape[-2:], mode="bilinear", align_corners=False).to(m.dtype) for m in rest]
            mining(seen, torch.cat([first, *resized], dim=1)[0])

        measure("mining", mine)
        del maps
    if not wanted & {"prefill", "decode", "first-token"}:
        return
    model = language()
    if "prefill" in wanted:
        for length in arguments.prefill:
            embeddings = torch.randn(1, length, hidden).to(DTYPE)
            measure(f"prefill {length}", lambda: read(model, embeddings, DynamicCache(config=model.config)))
    if "decode" in wanted:
        for context in arguments.context:
            cache = DynamicCache(config=model.config)
            token = read(model, torch.randn(1, context, hidden).to(DTYPE), cache).argmax(-1, keepdim=True)

            def step():
                model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1)

            measure(f"decode after {context}", step, lambda: cache.crop(-1))
    if whole:
        question = torch.randint(0, 1000, (1, arguments.question))

        def first_token():
            visual = mining(patches(), high_res(large)[0])
            embeddings = torch.cat([visual[None], model.get_input_embeddings()(question)], dim=1)
            read(model, embeddings, DynamicCache(config=model.config)).argmax(-1)

        measure("first-token", first_token)


with torch.inference_mode():
    main()
