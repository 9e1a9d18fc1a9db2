"""Instructions that ask for a picture, for teaching the built-in model the generation protocol (docs/drawing.md).

    python tools/smol/draw.py [--data DIR]

Needs what `make_data.py` and `emoji_painter.py` wrote. Writes `train/draw.json`: requests that end in `<GEN>`, some about a picture, some not,
answered with a prompt between `<h>` and `</h>`; a few requests without `<GEN>`, answered in words; and reminders of everything else.
"""

import numpy

from common import arguments, read_json, stable_fraction, stable_seed, write_json
from names import is_plural, with_article

REQUESTS = (
    "draw {0}", "draw me {0}", "draw {0} for me", "can you draw {0}?", "could you draw {0} for me?", "please draw {0}", "make me a picture of {0}", "make a picture of {0}",
    "make an image of {0}", "create a picture of {0}", "create an image of {0}", "generate {0}", "generate an image of {0}", "generate a picture of {0}", "paint {0}", "paint me {0}",
    "paint a picture of {0}", "can you paint {0}?", "sketch {0}", "show me {0}", "show me a picture of {0}", "I want a picture of {0}", "I want to see {0}", "I would like a drawing of {0}",
    "I'd like to see {0}", "give me a picture of {0}", "please make a drawing of {0}", "let me see {0}", "an image of {0}, please", "a picture of {0}, please", "{0}, please", "how does {0} look?",
    "what does {0} look like?", "imagine {0}", "illustrate {0}", "could I have a picture of {0}?", "design {0}", "I need an emoji of {0}", "draw an emoji of {0}", "my daughter wants a picture of {0}",
)
ANSWERS = ("Here is {0}.", "Sure, here is {0}.", "Of course. Here is {0}.", "This is {0}.")
ABOUT = ("Draw it.", "Draw what you see.", "Can you draw this?", "Draw another one.", "Make a picture of this.", "Paint this again.", "Draw the main object.", "Generate a picture like this one.", "Paint what you described.")
SIZES = ("big", "small", "tiny", "happy", "beautiful", "old", "new", "shiny", "cute")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white")
COUNTS = {"plain": 1500, "about": 300, "words": 80}
REMINDERS = {"features/": 350, "unpacked/easy-vqa": 250, "images/emoji": 120, "images/clipart": 80, "": 100}


def one(noun):
    """The noun with its article, as it stands in a prompt."""
    return noun if is_plural(noun) else with_article(noun)


def finish(random, text):
    """Requests as people type them: with or without a capital letter and a full stop."""
    if random.random() < 0.5:
        text = text[0].upper() + text[1:]
    if text[-1] not in "?." and random.random() < 0.4:
        text += "."
    return text


def conversation(identity, turns, image=None):
    entries = []
    for index, (question, answer) in enumerate(turns):
        entries.append({"from": "human", "value": ("<image>\n" if image and index == 0 else "") + question})
        entries.append({"from": "gpt", "value": answer})
    record = {"id": identity, "conversations": entries}
    return {**record, "image": image} if image else record


def plain(index, painted, others):
    """One or two requests without a picture; four of five are for what the painter knows."""
    random = numpy.random.default_rng(stable_seed(f"draw {index}"))
    turns = []
    for _ in range(1 if random.random() < 0.8 else 2):
        pool = painted if random.random() < 0.8 else others
        noun = pool[int(random.integers(len(pool)))]
        if random.random() < 0.15 and len(noun.split()) == 1:
            words = COLOURS if random.random() < 0.6 else SIZES
            noun = f"{words[int(random.integers(len(words)))]} {noun}"
        name = one(noun)
        request = REQUESTS[int(random.integers(len(REQUESTS)))].format(name)
        answer = ANSWERS[int(random.integers(len(ANSWERS)))].format(name)
        if is_plural(noun):
            answer = answer.replace("Here is", "Here are").replace("here is", "here are").replace("This is", "These are")
        turns.append((finish(random, request) + " <GEN>", f"{answer} <h>{name}</h>"))
    return conversation(f"draw {index}", turns)


def about(record):
    """A picture that is named, then drawn again."""
    random = numpy.random.default_rng(stable_seed("about " + record["id"]))
    question, answer = (turn["value"] for turn in record["conversations"][:2])
    name = answer.rstrip(".").removeprefix("The picture shows ").removeprefix("This is ").removeprefix("These are ")
    name = name[0].lower() + name[1:] if name[:2] in ("A ", "An") else name
    request = ABOUT[int(random.integers(len(ABOUT)))] + " <GEN>"
    if random.random() < 0.5:
        return conversation("about " + record["id"], [(request, f"Here is {name}. <h>{name}</h>")], record["image"])
    turns = [(question.removeprefix("<image>\n"), answer), (request, f"Here is {name}. <h>{name}</h>")]
    return conversation("about " + record["id"], turns, record["image"])


def words(index, painted):
    """Without `<GEN>` nothing is painted."""
    random = numpy.random.default_rng(stable_seed(f"words {index}"))
    name = one(painted[int(random.integers(len(painted)))])
    request = finish(random, REQUESTS[int(random.integers(8))].format(name))
    return conversation(f"words {index}", [(request, "I can draw when you switch drawing on.")])


def main():
    data = arguments(__doc__.splitlines()[0]).parse_args().data
    painted = sorted({name for record in read_json(data / "train" / "painter.json") for name in record["names"]})
    others = sorted({entry["noun"].lower() for entry in read_json(data / "manifest.json") if entry.get("noun") and entry["side"] == "train"} - set(painted))
    records = [plain(index, painted, others) for index in range(COUNTS["plain"])]
    records += [words(index, painted) for index in range(COUNTS["words"])]
    stage2 = read_json(data / "train" / "stage2-short.json")
    ordered = sorted(stage2, key=lambda record: stable_fraction("reminder " + record["id"]))
    named = [record for record in ordered if record["image"].startswith(("images/emoji", "images/clipart"))]
    records += [about(record) for record in named[: COUNTS["about"]]]
    taken = dict.fromkeys(REMINDERS, 0)
    for record in ordered:
        source = next(source for source in REMINDERS if record["image"].startswith(source))
        if taken[source] < REMINDERS[source]:
            taken[source] += 1
            records.append({**record, "id": "reminder " + record["id"]})
    write_json(data / "train" / "draw.json", sorted(records, key=lambda record: stable_fraction("order " + record["id"])))
    print(f"{len(records)} records, reminders: {taken}")


if __name__ == "__main__":
    main()
