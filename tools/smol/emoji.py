"""Names and groups of the Fluent 3D emoji, from the emojibase labels."""

import re

from common import read_json, stable_fraction

RENAMED = {
    "front-facing baby chick": "baby chick", "hot beverage": "cup of coffee", "automobile": "car", "oncoming automobile": "car", "sport utility vehicle": "car", "articulated lorry": "truck",
    "steaming bowl": "bowl of noodles", "soft ice cream": "ice cream", "T-Rex": "dinosaur", "sauropod": "dinosaur", "black bird": "bird", "ewe": "sheep", "poultry leg": "chicken leg",
    "lady beetle": "ladybug", "honeybee": "bee", "locomotive": "train", "railway car": "train", "high-speed train": "train", "bullet train": "train", "light rail": "train", "metro": "train",
    "trolleybus": "bus", "tram car": "tram", "passenger ship": "ship", "small airplane": "airplane", "airplane departure": "airplane", "airplane arrival": "airplane", "musical keyboard": "piano",
    "man’s shoe": "shoe", "woman’s hat": "hat", "billed cap": "cap", "desktop computer": "computer", "optical disk": "compact disc", "mantelpiece clock": "clock", "sun with face": "sun",
    "glowing star": "star", "evergreen tree": "tree", "deciduous tree": "tree", "racing car": "race car", "two-hump camel": "camel", "spouting whale": "whale", "carousel horse": "carousel horse",
    "woman’s sandal": "sandal", "woman’s boot": "boot", "woman’s clothes": "blouse", "headphone": "headphones", "fork and knife with plate": "plate", "clinking beer mugs": "glass of beer",
    "beer mug": "glass of beer", "wine glass": "glass of wine", "cocktail glass": "cocktail", "ear of corn": "corn", "cherries": "cherries", "high-heeled shoe": "shoe", "flat shoe": "shoe",
    "house with garden": "house", "office building": "office building", "snow-capped mountain": "mountain", "mount fuji": "mountain", "globe with meridians": "globe", "see-no-evil monkey": "monkey",
    "hear-no-evil monkey": "monkey", "speak-no-evil monkey": "monkey", "pool 8 ball": "billiard ball", "game die": "dice", "jack-o-lantern": "pumpkin", "closed book": "book", "green book": "book",
    "blue book": "book", "orange book": "book", "open book": "book", "wrapped gift": "gift", "locked": "padlock", "unlocked": "padlock", "old key": "key", "carpentry saw": "saw",
    "cooking": "frying pan", "mahjong red dragon": "game tile", "shallow pan of food": "pan of food", "spiral shell": "shell", "timer clock": "clock", "oncoming bus": "bus", "oncoming taxi": "taxi", "oncoming police car": "police car",
    "police car light": "siren", "cat with tears of joy": "cat", "grinning cat with smiling eyes": "cat", "smiling cat with heart-eyes": "cat", "cat with wry smile": "cat", "curly loop": "loop",
    "manual wheelchair": "wheelchair", "motorized wheelchair": "wheelchair", "snowman without snow": "snowman", "full moon face": "moon", "new moon face": "moon", "crescent moon": "moon", "tropical fish": "fish", "fallen leaf": "leaf", "maple leaf": "leaf",
    "umbrella with rain drops": "umbrella", "closed umbrella": "umbrella", "light bulb": "light bulb", "thong sandal": "sandal", "computer disk": "disk", "one-piece swimsuit": "swimsuit", "potable water": "water tap", "leaf fluttering in wind": "leaf", "cheese wedge": "cheese",
}
KINDS = {
    "animal": ("animal-mammal", "animal-bird", "animal-amphibian", "animal-reptile", "animal-marine", "animal-bug", "cat-face", "monkey-face"),
    "plant": ("plant-flower", "plant-other"), "food": ("food-fruit", "food-vegetable", "food-prepared", "food-asian", "food-sweet"), "drink": ("drink",),
    "vehicle": ("transport-ground", "transport-water", "transport-air"), "musical instrument": ("musical-instrument",), "piece of clothing": ("clothing",),
    "building": ("place-building", "place-religious"), "tool": ("tool",),
}
NO_KIND = set("anchor;ring buoy;parachute;seat;bus stop;motorway;railway track;oil drum;fuel pump;wheel;siren;horizontal traffic light;vertical traffic light;stop sign;construction;station;paw prints;feather;wing;pig nose;spider web;microbe;coral;empty nest;nest with eggs;"
              "bouquet;rosette;building construction;brick;rock;wood;wedding;Statue of Liberty;ice;baby bottle;teapot;glasses;sunglasses;goggles;hair pick;crown;prayer beads;lipstick;ring;gem stone;purse;handbag;clutch bag;shopping bags;backpack;folding hand fan;"
              "chains;link;white cane;boomerang;shield;bomb;satellite;salt;canned food;jar;graduation cap;wheelchair;kaaba;dagger;crossed swords;bow and arrow;balance scale".split(";"))
PLAIN_SUBGROUPS = set(
    "face-costume cat-face monkey-face heart animal-mammal animal-bird animal-amphibian animal-reptile animal-marine animal-bug plant-flower plant-other food-fruit food-vegetable food-prepared food-asian "
    "food-sweet drink dishware place-map place-geographic place-building place-religious place-other transport-ground transport-water transport-air hotel time sky-weather event award-medal sport game "
    "arts-crafts clothing sound music musical-instrument phone computer light-video book-paper money mail writing office lock tool science medical household other-object body-parts hand-single-finger hand-fingers-closed".split()
)
PEOPLE = {"baby", "boy", "girl", "man", "woman", "old man", "old woman", "student", "teacher", "judge", "farmer", "cook", "mechanic", "scientist", "artist", "pilot", "astronaut", "firefighter", "police officer", "detective", "guard", "construction worker", "ninja", "Santa Claus", "superhero", "mermaid", "elf", "vampire", "zombie", "skier", "snowboarder"}


def name_and_kind(label, subgroup):
    """emojibase label and subgroup -> (noun, kind or None), or None for what has no plain name."""
    label = label.replace("’", "’")
    if subgroup in ("person", "person-role", "person-fantasy", "person-sport"):
        return (label, "person") if label in PEOPLE else None
    if subgroup.startswith("face-") and subgroup != "face-costume":
        return (label, None) if label.endswith("face") and len(label.split()) <= 2 else None
    if subgroup == "country-flag":
        return ("flag", None)
    if subgroup not in PLAIN_SUBGROUPS:
        return None
    if re.search(r"o’clock|-thirty", label):
        return ("clock", None)
    if subgroup == "heart":
        return ("heart", None) if label.endswith("heart") and not label.startswith("broken") else None
    if label.endswith(" moon") and subgroup == "sky-weather":
        return ("moon", None)
    if label.startswith(("cloud", "sun behind")):
        return ("cloud", None)
    noun = RENAMED.get(label, label)
    if subgroup.startswith("animal-"):
        noun = noun.removesuffix(" face")
    if len(noun.split()) > 3:
        return None
    kind = next((k for k, subgroups in KINDS.items() if subgroup in subgroups), None)
    return noun, (None if noun in NO_KIND or label in NO_KIND else kind)


def emoji(unpacked):
    """[(path, noun, kind, label, hexcode)] of the emoji with a plain name, skin tones left out, in a stable pseudo-random order."""
    folder = unpacked / "emojibase-data/package/en"
    messages = read_json(folder / "messages.json")
    subgroups = {entry["order"]: entry["key"] for entry in messages["subgroups"]}
    assets = unpacked / "lobehub-fluent-emoji-3d/package/assets"
    result, flags = [], 0
    for entry in sorted(read_json(folder / "data.json"), key=lambda e: stable_fraction("emoji" + e["hexcode"])):
        code = entry["hexcode"].lower()
        path = next((p for p in (assets / f"{c}.webp" for c in (code, code.replace("-fe0f", ""), code + "-fe0f")) if p.exists()), None)
        found = name_and_kind(entry["label"], subgroups.get(entry.get("subgroup"), "")) if path else None
        if found is None:
            continue
        if found[0] == "flag" and (flags := flags + 1) > 40:
            continue
        result.append((path, *found, entry["label"], code))
    return result
