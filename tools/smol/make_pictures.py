"""First half of the training data: pictures, their names and their split, written to `images/` and `manifest.json` of the data folder.

Called by `make_data.py`. Every picture depends on its own seed alone, so an interrupted run goes on where it stopped and gives
the same pictures.
"""

import io

import numpy
from PIL import Image

import pictures
import rendered
from clipart import clip_art
from common import read_json, stable_fraction, stable_seed, write_bytes, write_json
from emoji import emoji
from names import with_article

HELD_OUT = 0.10
EMOJI_VARIANTS, CLIP_VARIANTS = 2, 1
RENDERED_TRAINING = {"words": 320, "counts": 320, "positions": 360, "colours": 300, "charts": 200}
RENDERED_HELD_OUT = {"words": 100, "counts": 100, "positions": 100}
FONT_FILES = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf")


def paths(data):
    unpacked = data / "unpacked"
    return unpacked, unpacked / "openclipart-png/usr/share/openclipart/png", unpacked / "fonts-dejavu-core/usr/share/fonts/truetype/dejavu"


def save(image, path):
    """Write a picture as JPEG (composed) or PNG (rendered, flat)."""
    buffer = io.BytesIO()
    if path.suffix == ".jpg":
        image.save(buffer, "JPEG", quality=92)
    else:
        image.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def cutout_pictures(data, source, path, key, noun, variants, side, fields, flip):
    """Write the variants of one cut-out; returns manifest entries."""
    entries, cutout = [], None
    for variant in range(variants):
        name = f"images/{source}/{key}-{variant}.jpg"
        random = numpy.random.default_rng(stable_seed(f"{source} {key} {variant}"))
        # drawn before the existence test so that resuming gives the same colour name
        _, colour = pictures.background(numpy.random.default_rng(stable_seed(f"{source} {key} {variant}")))
        if not (data / name).exists():
            cutout = cutout or pictures.load_cutout(path)
            if cutout is None:
                return []
            canvas, colour = pictures.composite(cutout, random, flip)
            save(canvas, data / name)
        entries.append({"image": name, "source": source, "noun": noun, "background": colour, "side": side, "original": path.relative_to(data).as_posix(), **fields})
    return entries


def easy_vqa(data):
    """{split: {image: [(question, answer)]}} with the set's own files, linked by path below the data folder."""
    folder = data / "unpacked/easy-vqa/easy_vqa/data"
    result = {}
    for split in ("train", "test"):
        images = {}
        for question, answer, index in read_json(folder / split / "questions.json"):
            images.setdefault(int(index), []).append((question, answer))
        names = {index: f"unpacked/easy-vqa/easy_vqa/data/{split}/images/{index}.png" for index in images}
        for name in names.values():
            if not (data / name).exists():
                raise SystemExit(f"{name}: picture missing, run fetch.py")
        result[split] = {names[index]: images[index] for index in sorted(images)}
    return result


def make_pictures(data):
    """All composed and rendered pictures with their manifest."""
    Image.MAX_IMAGE_PIXELS = None
    unpacked, clip_root, font_root = paths(data)
    entries = []
    cutouts = {}
    for path, noun, kind, label, code in emoji(unpacked):
        side = "held-out" if stable_fraction("split emoji " + code) < HELD_OUT else "train"
        if side == "train" and noun in rendered.COUNTABLE:
            cutouts.setdefault(noun, []).append(path)
        flip = noun not in ("clock", "flag", "book") and "hand" not in noun
        entries += cutout_pictures(data, "emoji", path, code, noun, 1 if side == "held-out" else EMOJI_VARIANTS, side, {"kind": kind, "label": label}, flip)
    print(f"emoji: {len(entries)} pictures", flush=True)
    kinds = {entry["noun"]: entry["kind"] for entry in entries}
    for path, noun, key in clip_art(clip_root):
        side = "held-out" if stable_fraction("split clip art " + key) < HELD_OUT else "train"
        entries += cutout_pictures(data, "clipart", path, path.stem.replace("%", "-"), noun, CLIP_VARIANTS, side, {"kind": kinds.get(noun), "key": key}, noun != "clock")
    print(f"with clip art: {len(entries)} pictures", flush=True)

    fonts = [font_root / name for name in FONT_FILES]
    loaded = {noun: [pictures.load_cutout(p) for p in files] for noun, files in cutouts.items()}
    makers = {
        "words": lambda random: rendered.words(random, fonts),
        "counts": lambda random: rendered.counts(random, loaded),
        "positions": lambda random: rendered.positions(random, loaded, with_article),
        "colours": rendered.colours,
        "charts": rendered.charts,
    }
    for side, amounts in (("train", RENDERED_TRAINING), ("held-out", RENDERED_HELD_OUT)):
        for kind, amount in amounts.items():
            for index in range(amount):
                name = f"images/{kind}-{side}/{index:04d}.png"
                image, turns, facts = makers[kind](numpy.random.default_rng(stable_seed(f"{side} {kind} {index}")))
                if not (data / name).exists():
                    save(image, data / name)
                entries.append({"image": name, "source": kind, "turns": turns, "facts": facts, "side": side})
    write_json(data / "manifest.json", entries)
    print(f"with rendered pictures: {len(entries)} pictures", flush=True)
    return entries
