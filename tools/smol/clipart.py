"""Names of the openclipart pictures: which file shows what, cleaned from folder and file names in several languages."""

import re

from common import stable_fraction
from names import CLIP_FOLDERS, CLIP_WORDS

# At most so many pictures with one name, so that stars and flags do not crowd out the rest.
LARGEST_GROUP = 28
SKIPPED_FOLDERS = ("computer/icons", "special", "shapes/flowchart", "shapes/callouts", "decorations", "buttons", "logos", "signs_and_symbols/map_symbols", "signs_and_symbols/led", "unsorted/duplicates", "transportation/aiga-symbols", "computer/network", "transportation/boating")

PHRASES = {"table_tennis": "table tennis racket", "baseball_cap": "cap", "baseball_bat": "baseball bat", "baseball_glove": "baseball glove", "note_with": "note", "tennis_racket": "tennis racket", "mouse_pointer": "mouse pointer", "piano_theory": "sheet of music", "rock_rpswb": "rock", "red_lips": "mouth"}


def noun_of(relative):
    """Relative path below the png folder -> English noun, or None when the name tells nothing certain."""
    folder, _, file = relative.rpartition("/")
    if folder.startswith(SKIPPED_FOLDERS):
        return None
    points = re.match(r"star_(\d+)pt", file)
    if points and int(points.group(1)) > 12:  # with more points they are discs rather than stars
        return None
    words = [w for w in re.split(r"[^A-Za-z]+", file.removesuffix(".png")) if w]
    words = [w.lower() for w in words]
    if not folder.startswith(("signs_and_symbols/flags", "shapes", "recreation/games", "transportation/roadsigns")):
        # authors' names follow the subject, so only the first three words count; the last hit of them is the head noun
        for pair, noun in PHRASES.items():
            if pair in "_".join(words):
                return noun
        for word in reversed(words[:3]) if words and words[0] in ("red", "blue", "green", "yellow", "black", "pink", "old", "simple", "small", "big", "open", "closed", "contour", "cartoon", "sleeping", "flying", "a", "an", "the", "wooden", "digital", "electric", "fried", "drinking", "baby") else words[:3]:
            if word in CLIP_WORDS:
                return CLIP_WORDS[word]
    while folder:
        if folder in CLIP_FOLDERS:
            return CLIP_FOLDERS[folder]
        folder = folder.rpartition("/")[0]
    return None


def clip_art(root):
    """[(path, noun, key)] in a stable pseudo-random order; `key` is the file name without numbers, one side of the split for all its files."""
    groups, result = {}, []
    files = sorted((p for p in root.rglob("*.png") if p.is_file() and not p.is_symlink()), key=lambda p: stable_fraction(p.name))
    seen = set()
    for path in files:
        noun = noun_of(path.relative_to(root).as_posix())
        if noun is None or path.name in seen or path.stat().st_size > 600_000:
            continue
        seen.add(path.name)
        groups.setdefault(noun, []).append(path)
    for noun in sorted(groups):
        for path in groups[noun][:LARGEST_GROUP]:
            result.append((path, noun, re.sub(r"[\d_\-.]+", " ", path.stem.lower()).strip()))
    return sorted(result, key=lambda item: stable_fraction("order" + item[0].name))
