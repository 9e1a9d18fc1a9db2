"""Putting cut-out pictures on backgrounds, and the plain colours with names."""

import numpy
from PIL import Image, ImageFilter

SIZE = 256
COLOURS = {
    "red": (214, 40, 40), "green": (44, 150, 70), "blue": (40, 90, 210), "yellow": (245, 215, 50), "orange": (243, 135, 30), "purple": (130, 60, 170),
    "pink": (245, 150, 190), "brown": (125, 80, 45), "gray": (130, 130, 130), "black": (15, 15, 15), "white": (250, 250, 250),
}


def jitter(colour, random, amount=14):
    """A near shade of a named colour."""
    return tuple(int(min(255, max(0, c + random.integers(-amount, amount + 1)))) for c in colour)


def background(random):
    """A 256x256 background: plain, gradient, or smooth noise like an out-of-focus scene. Returns (image, colour name or None)."""
    kind = random.random()
    if kind < 0.4:
        name = list(COLOURS)[random.integers(len(COLOURS))] if random.random() < 0.7 else "white"
        return Image.new("RGB", (SIZE, SIZE), jitter(COLOURS[name], random, 8)), name
    if kind < 0.65:
        first, second = random.integers(0, 256, (2, 3)).astype(float)
        angle = random.random() * 2 * numpy.pi
        rows, columns = numpy.mgrid[0:SIZE, 0:SIZE] / (SIZE - 1) - 0.5
        ramp = numpy.clip(0.5 + (rows * numpy.sin(angle) + columns * numpy.cos(angle)) * 0.8, 0, 1)[..., None]
        return Image.fromarray((first + (second - first) * ramp).astype(numpy.uint8)), None
    cells = int(random.integers(3, 12))
    # light and dark patches around one colour: scenes are seldom rainbows
    patches = random.uniform(40, 215, 3) + random.normal(0, 40, (cells, cells, 1)) + random.normal(0, 18, (cells, cells, 3))
    coarse = Image.fromarray(numpy.clip(patches, 0, 255).astype(numpy.uint8))
    image = coarse.resize((SIZE, SIZE), Image.BICUBIC).filter(ImageFilter.GaussianBlur(float(random.random() * 6)))
    grain = random.normal(0, 6 * random.random(), (SIZE, SIZE, 1))
    return Image.fromarray(numpy.clip(numpy.asarray(image) + grain, 0, 255).astype(numpy.uint8)), None


def load_cutout(path):
    """RGBA picture, transparent rims cut away, longest side at most 256; None when there is next to nothing in it."""
    with Image.open(path) as image:
        if image.width * image.height > 30_000_000:
            return None
        if image.format == "PNG" and max(image.size) > 1024:
            image.draft("RGBA", (512, 512))
        image = image.convert("RGBA")
    box = image.getchannel("A").getbbox()
    if box is None or box[2] - box[0] < 8 or box[3] - box[1] < 8:
        return None
    image = image.crop(box)
    image.thumbnail((SIZE, SIZE), Image.BICUBIC)
    return image


def place(canvas, cutout, centre, side, random=None, flip=True):
    """Paste `cutout`, longest side `side`, slightly turned and perhaps mirrored, with its middle at `centre`."""
    scale = side / max(cutout.size)
    picture = cutout.resize((max(1, round(cutout.width * scale)), max(1, round(cutout.height * scale))), Image.BICUBIC)
    if random is not None:
        if flip and random.random() < 0.5:
            picture = picture.transpose(Image.FLIP_LEFT_RIGHT)
        if random.random() < 0.5:
            picture = picture.rotate(float(random.normal(0, 7)), Image.BICUBIC, expand=True)
    canvas.paste(picture, (round(centre[0] - picture.width / 2), round(centre[1] - picture.height / 2)), picture)


def composite(cutout, random, flip=True):
    """One cut-out on a random background. Returns (image, background colour name or None)."""
    canvas, colour = background(random)
    side = SIZE * (0.5 + 0.48 * random.random())
    free = max(0.0, SIZE - side) / 2
    centre = (SIZE / 2 + free * (2 * random.random() - 1), SIZE / 2 + free * (2 * random.random() - 1))
    place(canvas, cutout, centre, side, random, flip)
    return canvas, colour
