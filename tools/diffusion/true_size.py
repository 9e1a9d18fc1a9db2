"""Stable Diffusion XL at true shapes with random weights: diffusers' numbers, speed and memory, beside this program's.

    python tools/diffusion/true_size.py make DIR [--shallow] [--dtype bf16]   a random UNet and VAE in the diffusers layout, and inputs
    python tools/diffusion/true_size.py run DIR --side 512 [--dtype bf16] [--reps 2] [--no-vae]
    python tools/diffusion/true_size.py compare DIR

`run` writes DIR/expected.safetensors and prints seconds and peak memory; the program's side is

    cargo run --release -p mgm-diffusion --example true_size -- DIR SIDE STORAGE [REPS] [no-vae]

which reads the same weights and inputs and writes DIR/found.safetensors. `--shallow` keeps every width, head and group of the real UNet
but one layer of each kind (about 0.5 billion parameters instead of 2.57), so that both sides fit in f32: that is the parity check, with
`--dtype f32` and STORAGE f32. Made with torch 2.15.0 and diffusers 0.42.1.
"""

import argparse
import json
import os
import resource
import statistics
import time

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def unet_config(shallow):
    return dict(
        sample_size=128, in_channels=4, out_channels=4, block_out_channels=(320, 640, 1280), layers_per_block=1 if shallow else 2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(5, 10, 20), cross_attention_dim=2048,
        transformer_layers_per_block=(1, 1, 1) if shallow else (1, 2, 10), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )


VAE_CONFIG = dict(
    in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=1024, scaling_factor=0.13025,
)


def inputs(side):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(shape, generator=generator)
    latent = side // 8
    return {
        "latents": draw(2, latent, latent, 4), "words": draw(2, 77, 2048), "pooled": draw(2, 1280),
        "sizes": torch.tensor([[side, side, 0, 0, side, side]] * 2, dtype=torch.float32), "code": draw(1, latent, latent, 4),
    }


def peak_gib():
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1048576, 2)


@torch.no_grad()
def make(arguments):
    torch.manual_seed(0)
    torch.set_default_dtype(DTYPES[arguments.dtype])
    for name, model in (("unet", lambda: UNet2DConditionModel(**unet_config(arguments.shallow))), ("vae", lambda: AutoencoderKL(**VAE_CONFIG))):
        model = model()
        print(name, sum(p.numel() for p in model.parameters()), "parameters")
        model.save_pretrained(os.path.join(arguments.directory, name), max_shard_size="20GB")


@torch.no_grad()
def run(arguments):
    dtype = DTYPES[arguments.dtype]
    torch.set_num_threads(arguments.threads)
    given = inputs(arguments.side)
    save_file(given, os.path.join(arguments.directory, "inputs.safetensors"))
    first = lambda x: x.permute(0, 3, 1, 2).contiguous().to(dtype)
    last = lambda x: x.permute(0, 2, 3, 1).contiguous().float()
    unet = UNet2DConditionModel.from_pretrained(os.path.join(arguments.directory, "unet"), torch_dtype=dtype).eval()
    added = {"text_embeds": given["pooled"].to(dtype), "time_ids": given["sizes"].to(dtype)}
    seconds = []
    for _ in range(arguments.reps + 1):
        start = time.perf_counter()
        out = unet(first(given["latents"]), torch.tensor(500.0), given["words"].to(dtype), added_cond_kwargs=added).sample
        seconds.append(time.perf_counter() - start)
    expected = {"unet": last(out)}
    print(json.dumps({"what": "UNet step with guidance (batch 2)", "side": arguments.side, "dtype": arguments.dtype, "first": round(seconds[0], 2),
                      "median": round(statistics.median(seconds[1:]), 2), "all": [round(s, 2) for s in seconds], "peak_gib": peak_gib()}))
    del unet
    if not arguments.no_vae:
        vae = AutoencoderKL.from_pretrained(os.path.join(arguments.directory, "vae"), torch_dtype=dtype).eval()
        start = time.perf_counter()
        expected["vae"] = last(vae.decode(first(given["code"])).sample)
        print(json.dumps({"what": "VAE decode", "side": arguments.side, "seconds": round(time.perf_counter() - start, 2), "peak_gib": peak_gib()}))
    save_file({name: value.contiguous() for name, value in expected.items()}, os.path.join(arguments.directory, "expected.safetensors"))


def compare(arguments):
    expected, found = (load_file(os.path.join(arguments.directory, f"{name}.safetensors")) for name in ("expected", "found"))
    for name in found:
        difference = (expected[name] - found[name]).abs().max() / expected[name].abs().max()
        print(f"{name}: largest difference {difference:.2e} of the largest value")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["make", "run", "compare"])
    parser.add_argument("directory")
    parser.add_argument("--shallow", action="store_true")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--reps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-vae", action="store_true")
    arguments = parser.parse_args()
    {"make": make, "run": run, "compare": compare}[arguments.action](arguments)


if __name__ == "__main__":
    main()
