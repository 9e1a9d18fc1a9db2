"""Makes a checkpoint with random weights in the exact layout of a released Mini-Gemini model.

    python make_checkpoint.py FAMILY OUT [--layers N | --full] [--hd] [--shard-bytes N] [--seed N] [--assets DIR]

FAMILY is one of 2b 7b 13b 8b 8x7b 34b. Widths, tensor names, towers, configuration and tokeniser are the release's; by default
the language model has two layers (Mixtral one), with --full all of them. Written tensor by tensor, so memory stays small.
Needs: torch, safetensors, gguf, sentencepiece.
"""

import argparse
from pathlib import Path

import torch

from families import FAMILIES, checkpoint_tensors, mini_gemini_config
from tensor_files import draw_chunks, write_json, write_sharded
from vocabularies import ROOT, write_tokenizer


def generation_config(family):
    config = {"_from_model_config": True, "bos_token_id": family.bos, "eos_token_id": family.eos, "transformers_version": "4.36.2"}
    match family.name:
        case "MGM-34B":
            # As released: it contradicts the tokeniser, whose end of a turn is 7.
            config |= {"eos_token_id": 2, "pad_token_id": 0}
        case "MGM-8B":
            config |= {"eos_token_id": [128001, 128009], "do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096}
        case "MGM-2B":
            config["pad_token_id"] = 0
    return config


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--full", action="store_true", help="all layers of the release")
    parser.add_argument("--hd", action="store_true", help="the configuration of the HD release")
    parser.add_argument("--shard-bytes", type=float, default=5e9)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--assets", type=Path, default=ROOT / "target/assets", help="where tools/fetch_tokenizers.sh put its files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    family, out = FAMILIES[arguments.family], arguments.out
    layers = family.layers if arguments.full else arguments.layers or (1 if family.experts else 2)
    out.mkdir(parents=True, exist_ok=True)

    def entry(draw):
        return draw.name, draw.shape, torch.bfloat16, lambda: draw_chunks(draw, arguments.seed, torch.bfloat16)

    write_sharded(out, [entry(draw) for draw in checkpoint_tensors(family, layers)], arguments.shard_bytes)
    write_json(out / "config.json", dict(sorted(mini_gemini_config(family, layers, arguments.hd).items())))
    if family.name != "MGM-13B":
        write_json(out / "generation_config.json", generation_config(family))
    write_tokenizer(arguments.family, out, 4096 if arguments.hd else 2048, arguments.assets)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {family.name}{'-HD' if arguments.hd else ''}, {layers} layers, {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
