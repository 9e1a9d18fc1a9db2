"""What the emoji painter is trained from: pictures of 96x96 pixels with prompts, a tokeniser, and an untrained model in the diffusers layout.

Needs torch, diffusers, transformers, numpy and Pillow, and the packages that `fetch.py` unpacks. Then, from the repository's root:

    mgm train recipes/emoji-painter-autoencoder.toml
    mgm train recipes/emoji-painter.toml
    mgm train recipes/emoji-painter-known.toml

The first two learn from all pictures, the third from the subjects of `painted.txt`, the ones the painter is to know well.
"""

import json
import re
from collections import Counter
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from common import arguments, stable_seed, write_bytes, write_json
from emoji import emoji
from names import is_plural, with_article

SIDE = 96
WINDOW = 24
MERGES = 3000
# Things that look like many others, or like nothing in particular.
LEFT_OUT = re.compile(
    r"face$|moon$|calendar|medal|notebook|banknote|chart|folder|\btray$|card |speaker |cityscape|sun behind|cloud with|fist$|thumbs|finger|globe showing|suit$|"
    r"page |pushpin|locked|envelope|battery|video|movie|film |knobs|slider|bookmark|foggy|^fog$|night|dusk|sunrise|sunset|motorway|railway|construction|bus stop|"
    r"elevator|microbe|petri|alembic|placard|receipt|label$|map|ceremony|wedding|martial|mending|beating|growing|pencil|nib|letter|e-mail|arrow|white cane|x-ray"
)
TEMPLATES = ["{0}", "a picture of {0}", "a 3D emoji of {0}"]
WORDS = ["big", "small", "tiny", "happy", "beautiful", "old", "new", "shiny", "cute"]


def subjects(unpacked):
    """[(path, hexcode, names)]: things with a plain name; people, flags, clock faces and the like are left out."""
    found = [entry for entry in emoji(unpacked) if entry[2] != "person" and entry[1] not in ("flag", "clock") and (entry[2] or not LEFT_OUT.search(entry[3].lower()))]
    owners = {}
    for path, noun, kind, label, code in found:
        owners.setdefault(noun.lower(), []).append((label.lower() != noun.lower(), code))
    result = []
    for path, noun, kind, label, code in found:
        label, noun = label.lower().replace("’", "'"), noun.lower().replace("’", "'")
        names = [label]
        # A noun that several emoji share belongs to the one whose label it is, else to the first.
        if noun != label and min(owners.get(noun, [(True, code)])) == (True, code):
            names.append(noun)
        result.append((path, code, names))
    return sorted(result, key=lambda entry: entry[1])


def prompts(names):
    """The texts that a picture is trained with; words about size and mood change nothing."""
    result = []
    for name in names:
        result += [name] + [template.format(name if is_plural(name) else with_article(name)) for template in TEMPLATES]
        word = WORDS[stable_seed("word " + name) % len(WORDS)]
        result.append(f"{word} {name}" if is_plural(name) else with_article(f"{word} {name}"))
    return sorted(set(result))


def picture(path):
    """The emoji on white."""
    with Image.open(path) as image:
        image = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
    canvas.alpha_composite(image)
    return canvas.convert("RGB").resize((SIDE, SIDE), Image.LANCZOS)


def known(records):
    """The subjects of `painted.txt` alone; an animal's face answers for the animal too."""
    wanted = (Path(__file__).parent / "painted.txt").read_text().split("\n")
    result = []
    for record in records:
        label = record["names"][0]
        if label in wanted:
            names = [label, label.removesuffix(" face")] if label.endswith(" face") else record["names"]
            result.append(record | {"names": names, "prompts": prompts(names)})
    missing = set(filter(None, wanted)) - {record["names"][0] for record in result}
    if missing:
        raise SystemExit(f"painted.txt names what no picture has: {', '.join(sorted(missing))}")
    return result


def byte_letters():
    """GPT-2's printable letter of every byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def tokeniser(folder, texts):
    """Byte-pair merges learned from the prompts, in the files of a CLIP tokeniser. Returns the size of the vocabulary."""
    letters = byte_letters()
    words = Counter(re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", " ".join(texts).lower()))
    pieces = {}
    for word, count in words.items():
        symbols = [letters[b] for b in word.encode()]
        pieces[word] = ([*symbols[:-1], symbols[-1] + "</w>"], count)
    vocabulary = [letters[b] for b in sorted(letters)]
    vocabulary += [letter + "</w>" for letter in vocabulary]
    merges = []
    while len(merges) < MERGES:
        pairs = Counter()
        for symbols, count in pieces.values():
            for pair in zip(symbols, symbols[1:]):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        vocabulary.append("".join(best))
        for word, (symbols, count) in pieces.items():
            joined, at = [], 0
            while at < len(symbols):
                if tuple(symbols[at : at + 2]) == best:
                    joined.append("".join(best))
                    at += 2
                else:
                    joined.append(symbols[at])
                    at += 1
            pieces[word] = (joined, count)
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: index for index, token in enumerate(vocabulary)}
    end = "<|endoftext|>"
    for name in ("tokenizer", "tokenizer_2"):
        write_bytes(folder / name / "vocab.json", json.dumps(ids, ensure_ascii=False).encode())
        write_bytes(folder / name / "merges.txt", ("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)).encode())
        config = {"model_max_length": WINDOW, "bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "pad_token": end, "tokenizer_class": "CLIPTokenizer"}
        write_json(folder / name / "tokenizer_config.json", config)
    return len(vocabulary)


def model(folder, vocabulary):
    """An untrained model, seeded."""
    torch.manual_seed(20261127)
    text = dict(vocab_size=vocabulary, max_position_embeddings=WINDOW, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1)
    first = CLIPTextModel(CLIPTextConfig(hidden_size=64, intermediate_size=256, num_attention_heads=2, num_hidden_layers=2, hidden_act="quick_gelu", projection_dim=64, **text))
    second = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=128, intermediate_size=512, num_attention_heads=4, num_hidden_layers=2, hidden_act="gelu", projection_dim=128, **text))
    unet = UNet2DConditionModel(
        sample_size=SIDE // 8, in_channels=8, out_channels=8, block_out_channels=(64, 128, 192), layers_per_block=(2, 1, 1), norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4, 6), transformer_layers_per_block=(1, 1, 1), cross_attention_dim=192, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=16, projection_class_embeddings_input_dim=128 + 6 * 16,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 64, 96), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1,
        latent_channels=8, norm_num_groups=8, sample_size=SIDE, scaling_factor=1.0, mid_block_add_attention=False, force_upcast=False,
    )
    with torch.no_grad():
        # The last convolution of every residual block and of the UNet starts small, as in the official training of such models.
        for module in (unet, vae):
            for name, parameter in module.named_parameters():
                if name.endswith(("conv2.weight", "conv2.bias", "proj_out.weight", "proj_out.bias")) or (module is unet and name.startswith("conv_out")):
                    parameter.mul_(0.1)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, prediction_type="v_prediction", timestep_spacing="trailing",
    )
    parts = {"text_encoder": first, "text_encoder_2": second, "unet": unet, "vae": vae, "scheduler": scheduler}
    for name, part in parts.items():
        part.save_pretrained(folder / name, safe_serialization=True) if name != "scheduler" else part.save_pretrained(folder / name)
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    index |= {name: ["diffusers" if name in ("unet", "vae", "scheduler") else "transformers", type(part).__name__] for name, part in parts.items()}
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "CLIPTokenizer"]}
    write_json(folder / "model_index.json", index)
    for name, part in parts.items():
        if name != "scheduler":
            print(f"{name}: {sum(p.numel() for p in part.parameters()) / 1e6:.2f} M values")


def main():
    data = arguments(__doc__.splitlines()[0]).parse_args().data
    records, texts = [], []
    for path, code, names in subjects(data / "unpacked"):
        target = data / "images" / "painter" / f"{code}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        picture(path).save(target.with_suffix(".part"), format="PNG")
        target.with_suffix(".part").rename(target)
        records.append({"image": str(target.relative_to(data)), "names": names, "prompts": prompts(names)})
        texts += records[-1]["prompts"]
    write_json(data / "train" / "painter.json", records)
    write_json(data / "train" / "painter-known.json", known(records))
    folder = data / "painter-untrained"
    vocabulary = tokeniser(folder, texts)
    print(f"{len(records)} pictures, {len(texts)} prompts, {vocabulary} tokens")
    longest = max(len(text.split()) for text in texts)
    if longest + 2 > WINDOW:
        raise SystemExit(f"a prompt of {longest} words, expected at most {WINDOW - 2}")
    model(folder, vocabulary)


if __name__ == "__main__":
    main()
