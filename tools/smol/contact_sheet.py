"""What the built-in model draws when it is asked to: a contact sheet, and two objective checks.

    python tools/smol/contact_sheet.py [--data DIR] [--mgm PROGRAM] [--seed 1]

Asks `mgm chat --gen` for each of REQUESTS with one fixed seed, nothing picked, and writes docs/images/emoji-painter.png. Then

* retrieval: subjects of painted.txt (by hash of the name) are painted from their names with that seed, and EfficientNet-Lite0's pooled features
  (the tower of the built-in model, on white) must be nearest to the real picture of that emoji among all emoji;
* naming: of the subjects that the built-in model names right on the real emoji, the first ten (by hash of the name) are painted, and the
  model must name the painted picture.
"""

import json
import subprocess
import tempfile
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageDraw

import convert_weights
import towers
from common import MODEL_DIRECTORY, REPOSITORY, arguments, read_json, stable_fraction, write_json

REQUESTS = (
    "draw a red apple", "draw me a cat", "make a picture of a banana", "paint a soccer ball", "can you draw a sunflower?", "please draw a sailboat", "create an image of an octopus",
    "generate a picture of a hamburger", "show me a rocket", "I want a picture of a snowman",
)
COLUMNS, CELL, LABEL = 5, 192, 34


def chat(mgm, request, file, seed):
    """The answer and the picture's prompt."""
    command = [mgm, "chat", "--gen", "--json", "--show", "never", "--seed", str(seed), "-o", str(file), request]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1], None
    answer = json.loads(done.stdout)
    return answer["answer"], answer["picture"]["prompt"]


def imagine(mgm, prompt, file, seed):
    subprocess.run([mgm, "imagine", prompt, "--show", "never", "--seed", str(seed), "-o", str(file)], capture_output=True, check=True)


def sheet(mgm, seed, folder):
    width, height = COLUMNS * CELL, -(-len(REQUESTS) // COLUMNS) * (CELL + LABEL)
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    for index, request in enumerate(REQUESTS):
        file = folder / f"request-{index}.png"
        answer, prompt = chat(mgm, request, file, seed)
        left, top = index % COLUMNS * CELL, index // COLUMNS * (CELL + LABEL)
        if prompt is not None:
            with Image.open(file) as image:
                canvas.paste(image.resize((CELL - 12, CELL - 12), Image.LANCZOS), (left + 6, top + 6))
        draw.text((left + 8, top + CELL - 4), request, fill="black")
        draw.text((left + 8, top + CELL + 12), f"<h>{prompt}</h>" if prompt else answer[:30], fill=(90, 90, 90))
        print(f"{request!r} -> {answer!r}, painted {prompt!r}")
    target = REPOSITORY / "docs" / "images" / "emoji-painter.png"
    target.parent.mkdir(exist_ok=True)
    canvas.save(target, optimize=True)


def features(model, files):
    """Pooled head features of pictures, [pictures, 1280], centred by the caller."""
    rows = []
    for file in files:
        with Image.open(file) as image:
            image = image.convert("RGB").resize((224, 224), Image.BICUBIC)
        pixels = torch.from_numpy((numpy.asarray(image, dtype=numpy.float32) - 127) / 128).permute(2, 0, 1)[None]
        rows.append(model(pixels).mean((2, 3))[0].numpy())
    return numpy.stack(rows)


def retrieval(mgm, data, seed, folder, limit):
    records = sorted(read_json(data / "train" / "painter-known.json"), key=lambda record: stable_fraction("retrieve " + record["names"][0]))[:limit]
    gallery = [record["image"] for record in read_json(data / "train" / "painter.json")]
    weights = convert_weights.lite0_weights(convert_weights.paths(data)["lite0"], True)
    model = lambda pixels: towers.lite0_maps(weights, pixels, prefix="")[-1]
    known = features(model, [data / image for image in gallery])
    mean = known.mean(0)
    unit = lambda x: (x - mean) / numpy.linalg.norm(x - mean, axis=-1, keepdims=True)
    files = []
    for index, record in enumerate(records):
        files.append(folder / f"subject-{index}.png")
        imagine(mgm, record["names"][0], files[-1], seed)
    order = numpy.argsort(-(unit(features(model, files)) @ unit(known).T), axis=1)
    own = [gallery.index(record["image"]) for record in records]
    first = sum(row[0] == wanted for row, wanted in zip(order, own))
    five = sum(wanted in row[:5] for row, wanted in zip(order, own))
    print(f"retrieval: {first} of {len(files)} nearest to their own emoji among {len(gallery)}, {five} within the nearest five")


def naming(mgm, data, seed, folder, limit):
    records = sorted(read_json(data / "train" / "painter-known.json"), key=lambda record: stable_fraction("ask " + record["names"][0]))[:limit]
    question = lambda name, file: {"id": name, "image": str(file), "question": "What is in the picture?", "answers": [name], "match": "contains"}

    def right(entries):
        write_json(folder / "questions.json", entries)
        answers = folder / "answers.jsonl"
        answers.unlink(missing_ok=True)
        subprocess.run([mgm, "eval", str(folder / "questions.json"), "--image-folder", "/", "--answers", str(answers)], capture_output=True, check=True)
        return {a["id"]: a["answer"] for a in map(json.loads, answers.read_text().splitlines())}

    real = right([question(record["names"][-1], (data / record["image"]).resolve()) for record in records])
    named = [name for name, answer in real.items() if name in answer.lower()]
    print(f"naming: the model names {len(named)} of {len(records)} real emoji")
    chosen = sorted(named, key=lambda name: stable_fraction("name " + name))[:10]
    entries = []
    for index, name in enumerate(chosen):
        file = folder / f"named-{index}.png"
        imagine(mgm, name, file, seed)
        entries.append(question(name, file))
    painted = right(entries)
    for name in chosen:
        print(f"  {name}: {painted[name]}")
    print(f"naming: {sum(name in painted[name].lower() for name in chosen)} of {len(chosen)} painted ones")


def main():
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--mgm", default=str(REPOSITORY / "target" / "release" / "mgm"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--subjects", type=int, default=100, help="emoji painted for the retrieval check")
    parser.add_argument("--candidates", type=int, default=409, help="real emoji that the built-in model is asked about, to find ten that it names")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        sheet(options.mgm, options.seed, Path(folder))
        retrieval(options.mgm, options.data, options.seed, Path(folder), options.subjects)
        naming(options.mgm, options.data, options.seed, Path(folder), options.candidates)


if __name__ == "__main__":
    main()
