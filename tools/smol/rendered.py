"""Pictures of our own making with exact answers: words, counts, positions, colours, charts."""

import numpy
from PIL import Image, ImageDraw, ImageFont

import pictures
from pictures import COLOURS, SIZE

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
SHAPES = ("circle", "square", "triangle", "star", "diamond")
WORDS = (
    "open stop hello sale exit love cat dog sun moon tree book milk tea bread fish car bus train home music game party happy summer winter water fire gold silver red blue green yellow one two three four "
    "five six seven eight nine ten north south east west left right up down yes no new old big small hot cold fast slow day night city park school hotel bank shop cafe pizza apple lemon orange peach hair "
    "nose hand foot king queen star ship boat lake river road street bridge tower door window table chair lamp phone radio clock time year month week monday friday sunday april june july welcome thanks please "
    "free price menu lunch dinner soup salad cake sugar salt rice corn egg cheese butter honey coffee juice beer wine rain snow wind cloud storm bird horse cow pig sheep duck lion tiger bear wolf fox frog snake"
).split()
COUNTABLE = {"apple": "apples", "car": "cars", "cat": "cats", "dog": "dogs", "star": "stars", "balloon": "balloons", "banana": "bananas", "book": "books", "bird": "birds", "key": "keys", "lemon": "lemons", "tree": "trees", "duck": "ducks", "cookie": "cookies", "bell": "bells", "heart": "hearts", "hat": "hats", "carrot": "carrots", "pig": "pigs", "turtle": "turtles"}


def contrasting(random, other, names=None):
    """A named colour that is easy to tell from `other`."""
    while True:
        name = (names or list(COLOURS))[random.integers(len(names or COLOURS))]
        if sum(abs(a - b) for a, b in zip(COLOURS[name], COLOURS[other])) > 200:
            return name


def draw_shape(draw, shape, centre, radius, colour):
    x, y = centre
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    elif shape == "square":
        draw.rectangle((x - radius, y - radius, x + radius, y + radius), fill=colour)
    else:
        corners = {"triangle": 3, "diamond": 4, "star": 10}[shape]
        points = []
        for index in range(corners):
            length = radius * (0.42 if shape == "star" and index % 2 else 1.15)
            angle = -numpy.pi / 2 + 2 * numpy.pi * index / corners
            points.append((x + length * numpy.cos(angle), y + length * numpy.sin(angle)))
        draw.polygon(points, fill=colour)


def spread(random, count, radius):
    """Centres that keep their distance."""
    while True:
        centres = []
        for _ in range(200):
            point = random.uniform(radius + 6, SIZE - radius - 6, 2)
            if all(numpy.hypot(*(point - other)) > 2.25 * radius for other in centres):
                centres.append(point)
            if len(centres) == count:
                return centres
        radius *= 0.9


def words(random, fonts):
    """One written word. Returns (image, turns, facts)."""
    back = list(COLOURS)[random.integers(len(COLOURS))] if random.random() < 0.5 else "white"
    ink = contrasting(random, back) if random.random() < 0.6 or back == "black" else ("black" if back in ("white", "yellow", "pink", "orange") else "white")
    word = WORDS[random.integers(len(WORDS))]
    word = (word.upper(), word, word.capitalize())[random.integers(3)]
    image = Image.new("RGB", (SIZE, SIZE), pictures.jitter(COLOURS[back], random, 6))
    path = str(fonts[random.integers(len(fonts))])
    size = int(random.integers(30, 110))
    while ImageFont.truetype(path, size).getlength(word) > SIZE - 16:
        size -= 4
    font = ImageFont.truetype(path, size)
    left, top, right, bottom = font.getbbox(word)
    x = random.uniform(6, max(7, SIZE - 6 - (right - left)))
    y = random.uniform(6, max(7, SIZE - 6 - (bottom - top)))
    ImageDraw.Draw(image).text((x - left, y - top), word, fill=pictures.jitter(COLOURS[ink], random, 6), font=font)
    wrong = WORDS[random.integers(len(WORDS))]
    turns = [(("What does the text say?", "What word is written here?", "Read the word.")[random.integers(3)], f'"{word}"')]
    turns.append(("What color is the text?", ink.capitalize() + "."))
    turns.append((f'Does it say "{wrong}"?', "Yes." if wrong.lower() == word.lower() else "No.") if random.random() < 0.5 else (f'Does it say "{word}"?', "Yes."))
    return image, turns, {"question": "What does the text say?", "answers": [word.lower()]}


def counts(random, cutouts):
    """One to six equal things. Returns (image, turns, facts)."""
    number = int(random.integers(1, 7))
    image, _ = pictures.background(random)
    if random.random() < 0.5:
        back = list(COLOURS)[random.integers(len(COLOURS))]
        image = Image.new("RGB", (SIZE, SIZE), COLOURS[back])
        ink, shape = contrasting(random, back), SHAPES[random.integers(len(SHAPES))]
        plural = shape + "s"
        draw = ImageDraw.Draw(image)
        radius = float(random.uniform(18, 34))
        for centre in spread(random, number, radius):
            draw_shape(draw, shape, centre, radius, COLOURS[ink])
        extra = (f"What color are the {plural}?" if number > 1 else f"What color is the {shape}?", ink.capitalize() + ".")
    else:
        name = sorted(cutouts)[random.integers(len(cutouts))]
        plural = COUNTABLE[name]
        radius = float(random.uniform(26, 38))
        cutout = cutouts[name][random.integers(len(cutouts[name]))]
        for centre in spread(random, number, radius):
            pictures.place(image, cutout, centre, 2 * radius, random)
        extra = (f"Are there any {plural} in the picture?", "Yes.")
    more = int(random.integers(1, 6))
    turns = [((f"How many {plural} are there?", f"How many {plural} do you see?", f"Count the {plural}.")[random.integers(3)], NUMBERS[number].capitalize() + "."), extra]
    turns.append((f"Are there more than {NUMBERS[more]} {plural}?", "Yes." if number > more else "No."))
    return image, turns, {"question": f"How many {plural} are there?", "answers": [NUMBERS[number], str(number)]}


def positions(random, cutouts, article):
    """Two different things side by side or one above the other. Returns (image, turns, facts)."""
    image, _ = pictures.background(random)
    names = sorted(cutouts)
    first, second = (names[i] for i in random.choice(len(names), 2, replace=False))
    vertical = bool(random.random() < 0.4)
    sides = ("at the top", "at the bottom") if vertical else ("on the left", "on the right")
    for name, offset in ((first, 0.25), (second, 0.75)):
        along, across = SIZE * (offset + random.uniform(-0.03, 0.03)), SIZE * random.uniform(0.35, 0.65)
        cutout = cutouts[name][random.integers(len(cutouts[name]))]
        pictures.place(image, cutout, (across, along) if vertical else (along, across), random.uniform(88, 118), random)
    say = lambda noun: article(noun)[0].upper() + article(noun)[1:] + "."
    turns = [(f"What is {sides[0]}?", say(first)), (f"What is {sides[1]}?", say(second))]
    asked = random.integers(2)
    turns.append((f"Where is the {(first, second)[asked]}?", f"{sides[asked].capitalize()}."))
    if random.random() < 0.5:
        turns = turns[::-1]
    question = random.integers(2)
    return image, turns, {"question": f"What is {sides[question]}?", "answers": [(first, second)[question]]}


def colours(random):
    """Two coloured shapes, larger than those of easy-vqa and with more colours. Returns (image, turns, facts)."""
    back = list(COLOURS)[random.integers(len(COLOURS))]
    image = Image.new("RGB", (SIZE, SIZE), COLOURS[back])
    draw = ImageDraw.Draw(image)
    shapes = [SHAPES[i] for i in random.choice(len(SHAPES), 2, replace=False)]
    inks = [contrasting(random, back)]
    inks.append(next(c for c in iter(lambda: contrasting(random, back), None) if c != inks[0]))
    radius = float(random.uniform(26, 46))
    for shape, ink, centre in zip(shapes, inks, spread(random, 2, radius)):
        draw_shape(draw, shape, centre, radius, pictures.jitter(COLOURS[ink], random, 8))
    which = random.integers(2)
    wrong = contrasting(random, inks[which])
    turns = [
        (f"What color is the {shapes[0]}?", inks[0].capitalize() + "."),
        (f"Which shape is {inks[1]}?", f"The {shapes[1]}."),
        ("What color is the background?", back.capitalize() + "."),
        (f"Is the {shapes[which]} {inks[which]}?", "Yes.") if random.random() < 0.5 else (f"Is the {shapes[which]} {wrong}?", "No."),
    ]
    return image, turns, {"question": turns[0][0], "answers": [inks[0]]}


def charts(random):
    """A bar chart of three or four bars. Returns (image, turns, facts)."""
    image = Image.new("RGB", (SIZE, SIZE), (250, 250, 250))
    draw = ImageDraw.Draw(image)
    number = int(random.integers(3, 5))
    names = [n for n in ("red", "green", "blue", "yellow", "orange", "purple", "black", "gray")]
    inks = [names[i] for i in random.choice(len(names), number, replace=False)]
    heights = random.permutation(numpy.linspace(40, 190, 6).astype(int))[:number]
    draw.line((28, 20, 28, 232, 240, 232), fill=(0, 0, 0), width=3)
    width = 200 / number
    for index, (ink, height) in enumerate(zip(inks, heights)):
        left = 36 + index * width
        draw.rectangle((left, 231 - int(height), left + width * 0.7, 231), fill=COLOURS[ink])
    tall, short = inks[int(heights.argmax())], inks[int(heights.argmin())]
    turns = [("Which bar is the tallest?", f"The {tall} bar."), ("Which bar is the shortest?", f"The {short} bar."), ("How many bars are there?", NUMBERS[number].capitalize() + "."), ("What kind of picture is this?", "A bar chart.")]
    turns = [turns[i] for i in random.choice(4, 3, replace=False)]
    return image, turns, {"question": "Which bar is the tallest?", "answers": [tall]}
