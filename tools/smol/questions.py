"""Questions and short true answers about one named thing, and the conversation records made of them."""

from names import is_plural, with_article

NAMING = ("What is in the picture?", "What is this?", "What does the picture show?", "What do you see?", "What is in this image?", "Name the main object.", "What is shown here?", "What is in the photo?")
SENTENCE = ("Describe the picture briefly.", "Describe the image in one sentence.", "Describe this picture.", "What does this photo show?", "Write a short caption.")
PRESENCE = ("Is there {} in the picture?", "Does the picture show {}?", "Do you see {}?")
KINDS = ("animal", "food", "vehicle", "plant", "building", "musical instrument", "piece of clothing")


def sentence(text):
    """First letter upper case, full stop at the end."""
    return text[0].upper() + text[1:] + "."


def choose(random, options):
    return options[int(random.integers(len(options)))]


def naming_turn(random, noun):
    """(question, answer) that asks for the name: mostly the short form, a third in a sentence."""
    name = with_article(noun)
    if random.random() < 0.33:
        verb = choose(random, ("The picture shows {}.", "This is {}.") if not is_plural(noun) else ("The picture shows {}.", "These are {}."))
        return choose(random, SENTENCE), verb.format(name)
    return choose(random, NAMING), sentence(name)


def presence_turn(random, noun, others):
    """A balanced yes/no question; `others` are plausible wrong names."""
    others = [o for o in others if o != noun and o not in noun and noun not in o]
    if random.random() < 0.5 or not others:
        return choose(random, PRESENCE).format(with_article(noun)), "Yes."
    return choose(random, PRESENCE).format(with_article(choose(random, others))), "No."


def kind_turn(random, kind):
    """A question about the broad group."""
    if random.random() < 0.45:
        return "What kind of thing is this?", sentence(with_article(kind) if kind not in ("food", "drink") else kind)
    if random.random() < 0.5:
        return f"Is this {with_article(kind) if kind != 'food' else 'food'}?", "Yes."
    wrong = choose(random, [k for k in KINDS if k != kind and not (k == "food" and kind in ("drink", "plant", "animal")) and not (k == "plant" and kind == "food")])
    return f"Is this {with_article(wrong) if wrong != 'food' else 'food'}?", "No."


def record(identity, image, turns):
    """LLaVA-format record of (question, answer) turns about one image."""
    conversations = []
    for index, (question, answer) in enumerate(turns):
        conversations.append({"from": "human", "value": ("<image>\n" if index == 0 else "") + question})
        conversations.append({"from": "gpt", "value": answer})
    return {"id": identity, "image": image, "conversations": conversations}
