"""Make the built-in model's training data from the fetched packages.

    python tools/smol/make_data.py [--data DIR]

Writes below the data folder: `images/` and `manifest.json` (composed and rendered pictures), `norms.safetensors` (run
`convert_weights.py` again when it changed), `features/` (class prototypes) and the LLaVA-format files `train/stage1.json` and
`train/stage2.json` (with a cut `train/stage2-short.json`), best records first in rounds, so that a run cut short has seen some of everything. Everything is seeded;
an interrupted run goes on where it stopped. Prints records and tokens per source.
"""

import collections

import numpy
import torch

import convert_weights
import norms
import prototypes
import towers
from common import MODEL_DIRECTORY, arguments, read_json, stable_fraction, stable_seed, write_json
from make_pictures import easy_vqa, make_pictures
from names import imagenet_names, kind_of, with_article
from questions import kind_turn, naming_turn, presence_turn, record, sentence
from token_counts import Counter

QUESTIONS_PER_RECORD = 8
# 118 of the 1000 classes are dogs; without a cap everything would become a dog
LARGEST_NOUN = 24
SHORT_RECORDS = 5000


def random_for(identity):
    return numpy.random.default_rng(stable_seed("record " + identity))


def named_record(stage, entry, others):
    """Record about one named emoji or clip art: name, presence, group or background."""
    identity = f"{stage} {entry['image']}"
    random = random_for(identity)
    turns = [naming_turn(random, entry["noun"])]
    extra = [presence_turn(random, entry["noun"], others(random, entry["kind"], entry["noun"]))]
    if entry["kind"] and entry["kind"] != "person":
        extra.append(kind_turn(random, entry["kind"]))
    if entry["background"]:
        extra.append(("What color is the background?", sentence(entry["background"])))
    if entry["noun"] == "clock" and entry.get("label", "").endswith(("o’clock", "-thirty")):
        extra.append(("What time does the clock show?", sentence(entry["label"].replace("’", "'"))))
    order = random.permutation(len(extra))
    turns += [extra[i] for i in order[: 1 if stage == "stage1" else 3]]
    return record(identity, entry["image"], turns)


def prototype_record(stage, entry, names, others):
    """Record about a class prototype: common name first, then its narrow name, presence or group."""
    identity = f"{stage} {entry['image']}"
    random = random_for(identity)
    noun, narrow = names[entry["class"]]
    turns = [naming_turn(random, noun)]
    extra = [presence_turn(random, noun, others(random, kind_of(entry["class"]), noun))]
    if kind_of(entry["class"]):
        extra.append(kind_turn(random, kind_of(entry["class"])))
    if noun.lower() not in narrow.lower() or len(narrow.split()) > len(noun.split()):
        if entry["class"] < 398 and noun.lower() != narrow.lower():
            extra.append((f"What kind of {noun} is it?", sentence(with_article(narrow))))
    order = random.permutation(len(extra))
    turns += [extra[i] for i in order[: 1 if stage == "stage1" else 2]]
    return record(identity, entry["image"], turns)


def easy_vqa_records(images):
    """All questions of each picture, eight a record, shuffled. Two lists: first records, remaining ones."""
    first, rest = [], []
    for image, questions in images.items():
        random = random_for(image)
        questions = [questions[i] for i in random.permutation(len(questions))]
        for start in range(0, len(questions), QUESTIONS_PER_RECORD):
            part = questions[start : start + QUESTIONS_PER_RECORD]
            (rest if start else first).append(record(f"{image} {start}", image, part))
    return first, rest


def wrong_names(entries, names):
    """A function that draws plausible wrong names: half of them of the same group."""
    groups = collections.defaultdict(set)
    for entry in entries:
        if entry["side"] == "train" and "noun" in entry:
            groups[entry["kind"]].add(entry["noun"])
            groups["all"].add(entry["noun"])
    for index, (noun, _) in enumerate(names):
        groups[kind_of(index)].add(noun)
        groups["all"].add(noun)
    lists = {key: sorted(value) for key, value in groups.items()}

    def draw(random, kind, noun):
        pool = lists[kind] if kind in lists and random.random() < 0.6 else lists["all"]
        return [pool[int(i)] for i in random.integers(0, len(pool), 4)]

    return draw


def capped(features, names, salt):
    """Prototypes, first copies first, at most LARGEST_NOUN of one common noun."""
    counts, result = collections.Counter(), []
    for entry in sorted(features, key=lambda e: (e["copy"], stable_fraction(salt + e["image"]))):
        noun = names[entry["class"]][0]
        counts[noun] += 1
        if counts[noun] <= LARGEST_NOUN:
            result.append(entry)
    return result


def rounds(seed, sources, count):
    """Deal each source's list evenly into `count` rounds and shuffle inside each: every prefix is balanced."""
    random = numpy.random.default_rng(seed)
    result = []
    for index in range(count):
        part = []
        for items in sources:
            part += items[len(items) * index // count : len(items) * (index + 1) // count]
        result += [part[i] for i in random.permutation(len(part))]
    return result


def source_of(item):
    """Source name of a record, from its image path."""
    path = item["image"]
    return "easy-vqa" if "easy-vqa" in path else "prototypes" if path.startswith("features/") else path.split("/")[1].removesuffix("-train")


def write_stages(data, entries, features, names):
    """Assemble and write both stages, print their composition."""
    train = [entry for entry in entries if entry["side"] == "train"]
    others = wrong_names(entries, names)
    order = lambda items, salt: sorted(items, key=lambda e: stable_fraction(salt + e["image"]))
    emoji = [e for e in train if e["source"] == "emoji"]
    clip = [e for e in train if e["source"] == "clipart"]
    made = [e for e in train if "turns" in e]
    first, rest = easy_vqa_records(dict(order_items(easy_vqa(data)["train"])))

    stage1 = rounds(11, [
        [prototype_record("stage1", e, names, others) for e in capped(features, names, "1")],
        [named_record("stage1", e, others) for e in order(emoji, "1")[:1500]],
        [named_record("stage1", e, others) for e in order(clip, "1")[:1000]],
        [record("stage1 " + e["image"], e["image"], e["turns"][:2]) for e in order([m for m in made if m["source"] in ("colours", "positions")], "1")[:400]],
        [{**r, "conversations": r["conversations"][:8]} for r in first[:500]],
    ], 6)
    named = [named_record("stage2", e, others) for e in order(emoji, "2")]
    clips = [named_record("stage2", e, others) for e in order(clip, "2")]
    classes = [prototype_record("stage2", e, names, others) for e in capped(features, names, "2")]
    drawn = [record("stage2 " + e["image"], e["image"], e["turns"]) for e in order(made, "2")]
    # the first 8,000 or so in balanced rounds, then what is left over for longer runs
    stage2 = rounds(12, [first[:2200], classes[:2200], named[:1300], clips[:900], drawn], 6)
    stage2 += rounds(13, [first[2200:] + rest, classes[2200:], named[1300:], clips[900:]], 2)
    counter = Counter(MODEL_DIRECTORY / "smollm2-135m-instruct.q4_1.gguf")
    # a short stage 2 for machines with little time: four of the balanced rounds
    for name, records in (("stage1", stage1), ("stage2", stage2), ("stage2-short", stage2[:SHORT_RECORDS])):
        write_json(data / "train" / f"{name}.json", records)
        totals = collections.defaultdict(lambda: [0, 0, 0])
        for item in records:
            tokens, answered = counter.count(item)
            for key in (source_of(item), "total"):
                totals[key][0] += 1
                totals[key][1] += tokens
                totals[key][2] += answered
        print(f"{name}: prefix tokens", [sum(counter.count(r)[0] for r in records[:n]) for n in (2000, 4000, 6000, 8000)])
        for key, (number, tokens, answered) in sorted(totals.items(), key=lambda t: t[0] == "total"):
            print(f"{name} {key}: {number} records, {tokens} tokens with 64 visual ones each, {answered} of them answered")


def order_items(images):
    """easy-vqa pictures in a stable pseudo-random order."""
    return sorted(images.items(), key=lambda item: stable_fraction("order " + item[0]))


def main():
    options = arguments(__doc__.splitlines()[0]).parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    data = options.data
    files = convert_weights.paths(data)
    names = imagenet_names(read_json(files["labels"]))
    entries = make_pictures(data)
    reference = towers.Towers.load(MODEL_DIRECTORY / "towers.safetensors")
    if not (data / "norms.safetensors").exists():
        norms.make_norms(data, entries, reference)
        raise SystemExit("norms.safetensors is new: run convert_weights.py, then this script again")
    full = convert_weights.lite0_weights(files["lite0"], True)
    features = prototypes.make_prototypes(data, entries, reference, full["_fc.weight"], full["_fc.bias"], names)
    write_stages(data, entries, features, names)


if __name__ == "__main__":
    main()
