"""Make the held-out evaluation sets: `eval/*.json` below the data folder.

    python tools/smol/make_eval.py [--data DIR]

Records: id, image, question, answers (accepted strings), match "exact" or "contains" (case-insensitive). `named_in_training` tells
for emoji and clip art whether another picture of the same name was trained on. Photographs come from packages that training never
touches; pictures with transparency are put on white. The last step fails when an evaluation picture is also a training picture,
by file hash or by a perceptual hash of the picture.
"""

import io
from pathlib import Path

import numpy
from PIL import Image

import pictures
from common import arguments, read_json, sha256, stable_fraction, write_bytes, write_json
from eval_photos import GCOMPRIS, OTHERS, STAMPS
from make_pictures import easy_vqa

LARGEST_SIDE = 1024
NAMING_QUESTION = "What is in the picture?"


def photographs(data):
    """Records of the real photographs, copies written to `eval/photos`."""
    unpacked = data / "unpacked"
    chosen = []
    for folder, stems in GCOMPRIS.items():
        files = {path.stem: path for path in sorted((unpacked / "gcompris-qt-data/pictures" / folder).rglob("*.webp"))}
        chosen += [(f"gcompris-{folder}-{stem}", files[stem], accepted) for stem, accepted in stems.items()]
    chosen += [("-".join(name.split("/")[i] for i in (0, -1 if "stdlib" not in name else 2)).rsplit(".", 1)[0], unpacked / name, accepted) for name, accepted in OTHERS]
    stamps = unpacked / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    chosen += [("tuxpaint-" + name.replace("/", "-"), stamps / f"{name}.png", accepted) for name, accepted in STAMPS.items()]
    records = []
    for identity, path, accepted in chosen:
        target = f"eval/photos/{identity}.jpg"
        if not (data / target).exists():
            with Image.open(path) as image:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                picture = Image.alpha_composite(white, image).convert("RGB")
            picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.BICUBIC)
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=95)
            write_bytes(data / target, buffer.getvalue())
        records.append({"id": identity, "image": target, "question": NAMING_QUESTION, "answers": accepted.split("|"), "match": "contains", "cut_out": identity.startswith("tuxpaint")})
    return records


# Held-out clip art whose file name misleads (the picture shows something else or nothing recognisable)
MISNAMED = {
    "orange_juice_box-0", "orange_juice_box_bw-0", "onion_rings-0", "onion_rings_bw-0", "flower-pot_01-0", "amibe_renardjb_on_free.f_01-0", "amibe_renardjb_on_free.f_02-0", "set_gatti-0",
    "wine_corks_ganson-0", "juice_glass_andremarcel._01-0", "pc_box_sergio_luiz_arauj_02-0", "psycho_icecube_phentex_01-0", "toro_al_tramonto_archite_01-0", "golf_flag_in_hole_on_gr_01-0",
}
# of 256 bits, between the cut-outs on white
NEAR_DUPLICATE = 16


def cutout_print(path):
    """Difference hash of a cut-out on white, transparent rims cut away."""
    cutout = pictures.load_cutout(path)
    white = Image.new("RGBA", cutout.size, "white")
    grey = numpy.asarray(Image.alpha_composite(white, cutout).convert("L").resize((17, 16), Image.BILINEAR)).astype(int)
    return (grey[:, 1:] > grey[:, :-1]).flatten()


def without_twins(data, entries):
    """Held-out emoji and clip art that have no twin (recoloured copy, same drawing under another name) among the training ones."""
    Image.MAX_IMAGE_PIXELS = None
    sides = {"train": {}, "held-out": {}}
    for entry in entries:
        if "original" in entry:
            sides[entry["side"]].setdefault(entry["original"], entry)
    prints = numpy.stack([cutout_print(data / name) for name in sides["train"]])
    kept = [e for name, e in sides["held-out"].items() if (prints != cutout_print(data / name)).sum(1).min() > NEAR_DUPLICATE]
    print(f"held-out emoji and clip art: {len(kept)} of {len(sides['held-out'])} without a twin in training")
    return kept


def named(entries, held_out, source):
    """One record per held-out emoji or clip art."""
    trained = {entry["noun"] for entry in entries if entry["side"] == "train" and "noun" in entry}
    records = []
    for entry in held_out:
        if entry["source"] == source and Path(entry["image"]).stem not in MISNAMED:
            answers = [entry["noun"]]
            if entry.get("label") and entry["label"].lower() != entry["noun"].lower():
                answers.append(entry["label"])
            if " " in entry["noun"] and entry["noun"].split()[-1] in trained:
                answers.append(entry["noun"].split()[-1])
            records.append({"id": entry["image"], "image": entry["image"], "question": NAMING_QUESTION, "answers": answers, "match": "contains", "named_in_training": entry["noun"] in trained})
    return sorted(records, key=lambda r: stable_fraction(r["id"]))[:150]


def fingerprint(path):
    """256-bit difference hash and the contrast of a picture."""
    with Image.open(path) as image:
        grey = numpy.asarray(image.convert("L").resize((17, 16), Image.BILINEAR)).astype(int)
    return (grey[:, 1:] > grey[:, :-1]).flatten(), grey.std()


def check_apart(data, records, training):
    """Stop when an evaluation picture is among the training pictures; returns the smallest perceptual distance."""
    hashes = {sha256(data / name) for name in training}
    prints = numpy.stack([fingerprint(data / name)[0] for name in training])
    closest = []
    for name in sorted({record["image"] for record in records}):
        if sha256(data / name) in hashes:
            raise SystemExit(f"{name}: this evaluation picture is a training picture")
        bits, contrast = fingerprint(data / name)
        distances = (prints != bits).sum(1)
        closest.append((int(distances.min()), name, training[int(distances.argmin())], float(contrast)))
    closest.sort()
    for distance, name, other, _ in [c for c in closest if c[3] > 8 and not c[1].startswith(("images/counts", "images/words", "images/positions"))][:5]:
        print(f"closest by perceptual hash: {distance} of 256 bits, {name} and {other}")
    for distance, name, other, contrast in closest:
        # rendered pictures of one small shape look alike to the hash; for them the file hash above decides
        if distance <= 4 and contrast > 8 and not name.startswith(("images/counts", "images/words", "images/positions")):
            raise SystemExit(f"{name}: nearly the same as the training picture {other}")


def main():
    data = arguments(__doc__.splitlines()[0]).parse_args().data
    entries = read_json(data / "manifest.json")
    held_out = without_twins(data, entries)
    sets = {"photos": photographs(data), "emoji": named(entries, held_out, "emoji"), "clipart": named(entries, held_out, "clipart")}
    for kind in ("words", "counts", "positions"):
        sets[kind] = [
            {"id": e["image"], "image": e["image"], "question": e["facts"]["question"], "answers": e["facts"]["answers"], "match": "contains"}
            for e in entries if e["source"] == kind and e["side"] == "held-out"
        ]
    vqa = easy_vqa(data)
    sets["easy_vqa"] = [
        {"id": f"{image.rsplit('/', 1)[1]} {index}", "image": image, "question": question, "answers": [answer], "match": "exact"}
        for image, questions in vqa["test"].items() for index, (question, answer) in enumerate(questions)
    ]
    training = sorted({e["image"] for e in entries if e["side"] == "train"})
    check_apart(data, [r for name in ("photos", "emoji", "clipart", "words", "counts", "positions") for r in sets[name]], training)
    # easy-vqa pictures hold two flat colours only: equal pictures in both splits are the set's own business, so count them
    trained = {sha256(data / name) for name in vqa["train"]}
    print("easy-vqa test pictures equal to a train picture:", sum(sha256(data / name) in trained for name in vqa["test"]))
    for name, records in sets.items():
        write_json(data / "eval" / f"{name}.json", records)
        print(f"eval/{name}.json: {len(records)} records, {len({r['image'] for r in records})} pictures")


if __name__ == "__main__":
    main()
