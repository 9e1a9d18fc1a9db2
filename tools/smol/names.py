"""Common English names: articles, ImageNet classes, words of clip-art file names."""

UNCOUNTED = set(
    "bread cheese bacon butter salt ice rice wood coral fire fog money spaghetti sushi popcorn falafel fondue oden sake ginger soap coffee tea milk honey yarn thread "
    "lightning rain snow beer wine soup pasta lasagna broccoli garlic smoke paper hay wool dough guacamole mashed-potato toilet-paper pizza-dough chain-mail velvet "
    "cooked-rice curry-rice corn music sand water grass sunlight clothing lipstick sunscreen jewelry".split()
)
PLURAL = set(
    "grapes cherries blueberries peanuts beans french-fries pancakes chopsticks jeans gloves socks shorts briefs scissors glasses sunglasses goggles binoculars skis headphones "
    "fireworks sparkles books houses footprints maracas chains shoes bubbles tights pajamas clogs berries onion-rings potato-chips shopping-bags playing-cards rings clouds balloons "
    "musical-notes coins rubber-ducks ballet-shoes two-hearts trousers pliers headphones tools dice flowers clothes candies people parallel-bars fork-and-knife crossed-swords crossed-flags "
    "paw-prints prayer-beads hammer-and-wrench nesting-dolls".split()
)


def with_article(noun):
    """"cat" -> "a cat", "orange" -> "an orange", "grapes" -> "grapes"; a noun that brings its article keeps it."""
    head = noun.lower().split(" of ")[0]
    key, last = head.replace(" ", "-"), head.split(" ")[-1]
    if noun.startswith(("a ", "an ", "the ")) or key in UNCOUNTED or key in PLURAL or last in PLURAL or last in UNCOUNTED:
        return noun
    first = noun.lower()
    vowel = first[0] in "aeiou" and not first.startswith(("uni", "eu", "one", "ukulele")) or first.startswith(("hour", "x-ray", "8"))
    return ("an " if vowel else "a ") + noun


def is_plural(noun):
    head = noun.lower().split(" of ")[0]
    return head.replace(" ", "-") in PLURAL or head.split(" ")[-1] in PLURAL


# Common nouns for contiguous ranges of ImageNet classes: (first, last, noun).
RANGES = [
    (0, 1, "fish"), (2, 4, "shark"), (5, 6, "stingray"), (7, 7, "rooster"), (8, 8, "chicken"), (9, 9, "ostrich"), (10, 21, "bird"), (22, 22, "eagle"), (23, 23, "vulture"),
    (24, 24, "owl"), (25, 29, "salamander"), (30, 32, "frog"), (33, 37, "turtle"), (38, 48, "lizard"), (49, 50, "crocodile"), (51, 51, "dinosaur"), (52, 68, "snake"),
    (69, 69, "fossil"), (70, 70, "spider"), (71, 71, "scorpion"), (72, 77, "spider"), (78, 78, "bug"), (79, 79, "centipede"), (80, 83, "bird"), (84, 84, "peacock"),
    (85, 86, "bird"), (87, 90, "parrot"), (91, 93, "bird"), (94, 94, "hummingbird"), (95, 95, "bird"), (96, 96, "toucan"), (97, 98, "duck"), (99, 99, "goose"), (100, 100, "swan"),
    (101, 101, "elephant"), (102, 102, "echidna"), (103, 103, "platypus"), (104, 104, "kangaroo"), (105, 105, "koala"), (106, 106, "wombat"), (107, 107, "jellyfish"),
    (108, 108, "sea anemone"), (109, 109, "coral"), (110, 111, "worm"), (112, 112, "shell"), (113, 113, "snail"), (114, 115, "slug"), (116, 117, "shell"), (118, 121, "crab"),
    (122, 124, "lobster"), (125, 125, "crab"), (126, 126, "bug"), (127, 128, "stork"), (129, 129, "bird"), (130, 130, "flamingo"), (131, 133, "heron"), (134, 143, "bird"),
    (144, 144, "pelican"), (145, 145, "penguin"), (146, 146, "bird"), (147, 148, "whale"), (149, 150, "seal"), (151, 268, "dog"), (269, 272, "wolf"), (273, 275, "dog"),
    (276, 276, "hyena"), (277, 280, "fox"), (281, 285, "cat"), (286, 286, "cougar"), (287, 287, "lynx"), (288, 289, "leopard"), (290, 290, "jaguar"), (291, 291, "lion"),
    (292, 292, "tiger"), (293, 293, "cheetah"), (294, 297, "bear"), (298, 298, "mongoose"), (299, 299, "meerkat"), (300, 300, "beetle"), (301, 301, "ladybug"), (302, 307, "beetle"),
    (308, 308, "fly"), (309, 309, "bee"), (310, 310, "ant"), (311, 312, "grasshopper"), (313, 313, "stick insect"), (314, 314, "cockroach"), (315, 315, "mantis"),
    (316, 318, "insect"), (319, 320, "dragonfly"), (321, 326, "butterfly"), (327, 327, "starfish"), (328, 328, "sea urchin"), (329, 329, "sea cucumber"), (330, 332, "rabbit"),
    (333, 333, "hamster"), (334, 334, "porcupine"), (335, 335, "squirrel"), (336, 336, "marmot"), (337, 337, "beaver"), (338, 338, "guinea pig"), (339, 339, "horse"),
    (340, 340, "zebra"), (341, 341, "pig"), (342, 343, "wild boar"), (344, 344, "hippopotamus"), (345, 345, "cow"), (346, 346, "buffalo"), (347, 347, "bison"), (348, 349, "sheep"),
    (350, 350, "goat"), (351, 353, "antelope"), (354, 354, "camel"), (355, 355, "llama"), (356, 359, "weasel"), (360, 360, "otter"), (361, 361, "skunk"), (362, 362, "badger"),
    (363, 363, "armadillo"), (364, 364, "sloth"), (365, 365, "orangutan"), (366, 366, "gorilla"), (367, 367, "chimpanzee"), (368, 382, "monkey"), (383, 384, "lemur"),
    (385, 386, "elephant"), (387, 387, "red panda"), (388, 388, "panda"), (389, 397, "fish"),
    (992, 997, "mushroom"),
]
# Common nouns of single classes whose label is too narrow or too technical; all others are called by their label.
SINGLE = {
    399: "dress", 400: "gown", 402: "guitar", 403: "ship", 404: "airplane", 408: "truck", 409: "clock", 410: "beehive", 412: "trash can", 413: "rifle", 421: "railing",
    423: "chair", 424: "barber shop", 429: "baseball", 430: "basketball", 431: "crib", 433: "cap", 434: "towel", 436: "car", 439: "cap", 440: "bottle", 441: "glass of beer",
    442: "bell tower", 444: "bicycle", 446: "binder", 449: "boat house", 450: "bobsled", 452: "bonnet", 456: "bow", 459: "bra", 465: "vest", 466: "train", 467: "butcher shop",
    468: "taxi", 474: "sweater", 475: "mirror", 476: "carousel", 477: "toolbox", 478: "box", 479: "wheel", 480: "cash machine", 481: "cassette", 484: "boat", 486: "cello",
    487: "phone", 489: "fence", 492: "chest", 493: "dresser", 495: "cabinet", 496: "stocking", 498: "movie theater", 499: "knife", 501: "cloak", 504: "mug", 505: "coffee maker",
    507: "lock", 508: "keyboard", 509: "candy store", 510: "ship", 511: "car", 513: "cornet", 514: "boot", 515: "cowboy hat", 518: "helmet", 520: "crib", 521: "pot", 522: "ball",
    525: "dam", 527: "computer", 528: "telephone", 530: "clock", 531: "watch", 532: "table", 536: "dock", 537: "dog sled", 540: "drilling rig", 542: "drumstick", 543: "dumbbell",
    544: "pot", 545: "fan", 546: "guitar", 547: "train", 548: "television", 550: "espresso machine", 554: "boat", 555: "fire engine", 559: "chair", 560: "helmet", 561: "forklift",
    563: "pen", 564: "bed", 565: "train", 566: "French horn", 567: "pan", 568: "coat", 569: "truck", 572: "goblet", 573: "go-kart", 575: "golf cart", 576: "gondola",
    578: "dress", 579: "piano", 581: "grille", 582: "grocery store", 585: "hair spray", 586: "military truck", 588: "basket", 590: "hand-held computer", 592: "hard drive",
    594: "harp", 595: "harvester", 596: "axe", 598: "television", 603: "horse cart", 605: "music player", 606: "iron", 607: "pumpkin", 609: "car", 611: "puzzle", 612: "rickshaw",
    618: "ladle", 619: "lamp", 620: "laptop", 623: "letter opener", 625: "boat", 627: "car", 628: "ship", 630: "shoe", 631: "lotion", 633: "magnifying glass", 635: "compass",
    636: "mail bag", 639: "swimsuit", 640: "manhole cover", 642: "xylophone", 648: "medicine cabinet", 649: "stone monument", 651: "microwave", 652: "uniform", 653: "milk can",
    654: "bus", 655: "skirt", 656: "van", 657: "rocket", 660: "mobile home", 661: "car", 663: "monastery", 664: "monitor", 665: "motorcycle", 667: "graduation cap", 670: "motor scooter",
    671: "bicycle", 675: "truck", 680: "baby bottle nipple", 681: "laptop", 684: "ocarina", 687: "organ", 689: "skirt", 690: "ox cart", 698: "palace", 703: "bench", 705: "train",
    706: "patio", 707: "telephone", 708: "statue", 711: "perfume bottle", 713: "copier", 714: "guitar pick", 715: "helmet", 716: "fence", 717: "truck", 720: "pill bottle", 722: "ball",
    724: "ship", 725: "pitcher", 728: "plastic bag", 730: "plow", 732: "camera", 734: "van", 736: "pool table", 737: "bottle", 740: "drill", 741: "rug", 744: "rocket",
    746: "hockey puck", 748: "purse", 749: "feather", 750: "quilt", 751: "race car", 752: "tennis racket", 755: "telescope", 756: "barrel", 757: "camper van", 759: "camera",
    760: "refrigerator", 763: "revolver", 765: "rocking chair", 766: "roast chicken", 768: "rugby ball", 770: "shoe", 774: "sandal", 778: "scale", 779: "bus", 780: "boat",
    782: "screen", 788: "shoe store", 789: "sliding door", 790: "basket", 803: "snow plow", 806: "sock", 807: "solar panel", 808: "sombrero", 809: "bowl of soup", 810: "keyboard",
    811: "heater", 812: "space shuttle", 814: "boat", 815: "spider web", 817: "car", 818: "spotlight", 820: "train", 821: "bridge", 824: "scarf", 825: "stone wall", 827: "stove",
    829: "tram", 831: "couch", 832: "temple", 834: "suit", 836: "sunglasses", 837: "sunglasses", 838: "sunscreen", 839: "bridge", 841: "sweater", 842: "swimsuit",
    846: "lamp", 847: "tank", 848: "tape player", 850: "teddy bear", 851: "television", 852: "tennis ball", 853: "thatched roof", 854: "curtain", 858: "roof", 862: "torch",
    863: "totem pole", 864: "truck", 866: "tractor", 867: "truck", 869: "coat", 870: "tricycle", 871: "boat", 873: "arch", 874: "bus", 876: "bathtub", 878: "keyboard",
    881: "piano", 884: "vaulted ceiling", 888: "bridge", 892: "clock", 895: "military plane", 897: "washing machine", 898: "bottle", 899: "jug", 900: "water tower", 901: "jug",
    904: "window", 905: "window", 906: "tie", 907: "bottle of wine", 908: "airplane wing", 910: "wooden spoon", 912: "fence", 913: "shipwreck", 914: "boat", 915: "tent", 916: "website",
    921: "book", 925: "bowl of soup", 926: "soup", 927: "dessert", 929: "popsicle", 930: "bread", 933: "hamburger", 940: "squash", 941: "squash", 942: "squash", 945: "pepper", 948: "apple",
    959: "pasta", 960: "chocolate cake", 962: "meatloaf", 964: "pie", 966: "glass of wine", 967: "cup of coffee", 968: "cup", 969: "drink", 970: "mountain", 972: "cliff",
    975: "lake", 976: "coast", 977: "beach", 978: "beach", 979: "valley", 984: "field of flowers", 985: "flower", 986: "flower", 988: "acorn", 989: "rose hip", 990: "chestnut",
    991: "coral fungus", 998: "ear of corn", 134: "crane", 148: "killer whale", 149: "dugong", 150: "sea lion", 286: "mountain lion", 497: "church", 638: "tights", 836 + 1: "sunglasses",
}


def imagenet_names(labels):
    """1000 labels -> 1000 pairs (common noun, narrow name), both without article."""
    table = dict(SINGLE)
    for first, last, noun in RANGES:
        for index in range(first, last + 1):
            table.setdefault(index, noun)
    result = []
    for index, label in enumerate(labels):
        narrow = label.split(" (")[0]
        result.append((table.get(index, narrow.lower() if narrow[1:] == narrow[1:].lower() and " " not in narrow else narrow), narrow))
    return result


def kind_of(index):
    """Broad group of an ImageNet class, for group questions; None where no plain word fits."""
    if index <= 397 and index not in (69, 109):
        return "animal"
    if 924 <= index <= 969 and index not in (958, 968):
        return "food"
    if index in {403, 404, 407, 436, 444, 466, 468, 472, 484, 510, 511, 547, 555, 569, 609, 627, 628, 654, 656, 661, 665, 670, 671, 675, 705, 717, 734, 751, 779, 780, 812, 814, 817, 820, 829, 864, 866, 867, 874, 895, 914}:
        return "vehicle"
    if index in {402, 401, 420, 432, 486, 513, 541, 546, 558, 566, 579, 593, 594, 641, 642, 683, 684, 687, 776, 822, 875, 881, 889}:
        return "musical instrument"
    if index in {410, 425, 437, 448, 483, 497, 498, 580, 663, 668, 698, 832, 900}:
        return "building"
    return None


# First words of clip-art file names in several languages -> English noun.
CLIP_WORDS = {
    "acquila": "eagle", "aquila": "eagle", "cigni": "swan", "cigno": "swan", "cormorant": "bird", "crow": "crow", "duck": "duck", "anatra": "duck", "papera": "duck", "eagle": "eagle",
    "flamand": "flamingo", "gabbiano": "seagull", "gallo": "rooster", "gufo": "owl", "gull": "seagull", "hen": "hen", "owl": "owl", "pollo": "chicken", "puffin": "puffin",
    "rooster": "rooster", "seagull": "seagull", "tacchino": "turkey", "uccello": "bird", "pennuto": "bird", "colombo": "pigeon", "dove": "dove", "tux": "penguin", "pinguino": "penguin",
    "penguin": "penguin", "wing": "wing", "abeille": "bee", "ape": "bee", "ant": "ant", "bee": "bee", "dragonfly": "dragonfly", "libellula": "dragonfly", "libellule": "dragonfly",
    "butterfly": "butterfly", "farfalla": "butterfly", "caterpillar": "caterpillar", "cavalletta": "grasshopper", "coccinella": "ladybug", "coccinelle": "ladybug", "ladybug": "ladybug",
    "damselfly": "dragonfly", "fly": "fly", "wasp": "wasp", "formichina": "ant", "formicona": "ant", "hopper": "grasshopper", "lumaca": "snail", "mante": "mantis", "mantide": "mantis",
    "moschito": "mosquito", "zanzara": "mosquito", "mosquito": "mosquito", "ragnetto": "spider", "ragno": "spider", "spider": "spider", "insetto": "insect", "dino": "dinosaur",
    "dinosauri": "dinosaur", "dinosauro": "dinosaur", "mermaid": "mermaid", "troll": "troll", "angelfish": "fish", "greyling": "fish", "bluewhale": "whale", "dolphin": "dolphin",
    "loach": "fish", "cichlid": "fish", "gourami": "fish", "orca": "killer whale", "pescetto": "fish", "seahorse": "seahorse", "bear": "bear", "orso": "bear", "ours": "bear",
    "tiger": "tiger", "tigre": "tiger", "cheetah": "cheetah", "leone": "lion", "beagle": "dog", "bulldog": "dog", "dog": "dog", "cavallo": "horse", "horse": "horse", "cat": "cat",
    "gatto": "cat", "gattina": "cat", "kitten": "kitten", "gatti": "cat", "pig": "pig", "porcinet": "pig", "monkey": "monkey", "antilope": "antelope", "bull": "bull", "toro": "bull",
    "toros": "bull", "bunny": "rabbit", "coniglio": "rabbit", "camel": "camel", "cammello": "camel", "canguro": "kangaroo", "kangaroo": "kangaroo", "squirrel": "squirrel",
    "baboon": "monkey", "beaver": "beaver", "chipmunk": "chipmunk", "elephant": "elephant", "elefante": "elephant", "elefantone": "elephant", "fox": "fox", "giraffe": "giraffe",
    "hamster": "hamster", "orangutan": "orangutan", "sheep": "sheep", "pecora": "sheep", "pecorella": "sheep", "deer": "deer", "fawn": "deer", "echidna": "echidna", "goat": "goat",
    "stambecco": "goat", "raccoon": "raccoon", "rhinoceros": "rhinoceros", "seal": "seal", "wolf": "wolf", "topo": "mouse", "vacca": "cow", "mucca": "cow", "frog": "frog",
    "frogs": "frog", "rana": "frog", "armadillo": "armadillo", "lizard": "lizard", "lucertola": "lizard", "lucertolona": "lizard", "lucertolone": "lizard", "ramarro": "lizard",
    "bat": "bat", "bison": "bison", "crawfish": "lobster", "dragon": "dragon", "snake": "snake", "scorpion": "scorpion", "turtle": "turtle", "lucchetto": "padlock", "struzzo": "ostrich",
    "poltrona": "armchair", "sedia": "chair", "table": "table", "couch": "couch", "tavolo": "table", "television": "television", "televisore": "television", "tv": "television",
    "barrel": "barrel", "villa": "house", "house": "house", "casa": "house", "chalet": "house", "home": "house", "pinkhome": "house", "houses": "houses", "lighthouse": "lighthouse",
    "church": "church", "tower": "tower", "factory": "factory", "firestation": "fire station", "school": "school", "wall": "wall", "usb": "USB plug", "folder": "folder", "computer": "computer",
    "camera": "camera", "harddisk": "hard drive", "joystick": "joystick", "keyboard": "keyboard", "laptop": "laptop", "laserprinter": "printer", "lcd": "monitor", "monitor": "monitor",
    "modem": "modem", "mouse": "computer mouse", "printer": "printer", "stampante": "printer", "server": "server", "router": "router", "floppy": "floppy disk", "cd": "compact disc",
    "phone": "telephone", "telephone": "telephone", "telefono": "telephone", "cellular": "mobile phone", "cell": "mobile phone", "mobile": "mobile phone", "handphone": "mobile phone", "clipboard": "clipboard", "box": "box", "scatolone": "box",
    "paperbag": "paper bag", "cesto": "basket", "borsa": "bag", "borsetta": "purse", "valigie": "suitcase", "suitcase": "suitcase", "book": "book", "bible": "book", "libro": "book", "books": "books",
    "newspaper": "newspaper", "brush": "brush", "crayon": "crayon", "palette": "palette", "tavolozza": "palette", "paper": "paper", "paperclip": "paperclip", "clips": "paperclip",
    "pen": "pen", "pencil": "pencil", "scissors": "scissors", "calculator": "calculator", "calcolatrice": "calculator", "stamp": "stamp", "thumbtack": "thumbtack", "battery": "battery",
    "bulb": "light bulb", "lightbulb": "light bulb", "antenna": "antenna", "camcorder": "video camera", "telecamera": "video camera", "cassette": "cassette", "robot": "robot",
    "satellite": "satellite", "beer": "glass of beer", "birra": "beer can", "bottiglia": "bottle", "bottle": "bottle", "cocktail": "cocktail", "martini": "cocktail", "wine": "glass of wine", "teapot": "teapot", "teiera": "teapot",
    "juice": "juice box", "coffee": "cup of coffee", "caffe": "cup of coffee", "cuppa": "cup", "glass": "glass", "icecube": "ice cube", "lemonade": "glass of lemonade", "milk": "glass of milk", "mug": "mug", "kubek": "mug",
    "can": "can", "teacup": "teacup", "soft": "soft drink", "bread": "bread", "croissant": "croissant", "muffin": "muffin", "pancake": "pancakes", "pancakes": "pancakes", "potato": "potato",
    "pretzel": "pretzel", "butter": "butter", "cheese": "cheese", "cake": "cake", "torta": "cake", "gateau": "cake", "candy": "candy", "cone": "ice cream", "glace": "ice cream", "gelato": "ice cream",
    "cookie": "cookie", "flan": "pudding", "gauffre": "waffle", "lollipop": "lollipop", "pie": "pie", "apple": "apple", "banana": "banana", "bananas": "banana", "cherries": "cherries",
    "cherry": "cherries", "grape": "grapes", "grapes": "grapes", "pear": "pear", "pera": "pear", "prugna": "plum", "prune": "plum", "lemon": "lemon", "lime": "lime", "melon": "melon",
    "orange": "orange", "peach": "peach", "pesca": "peach", "pineapple": "pineapple", "strawberry": "strawberry", "watermelon": "watermelon", "pasteque": "watermelon", "bacon": "bacon",
    "sausage": "sausage", "burger": "hamburger", "hamburger": "hamburger", "hot": "hot dog", "egg": "egg", "eggs": "egg", "salami": "salami", "steak": "steak", "aglio": "garlic", "pepper": "pepper",
    "corn": "corn", "pannocchia": "corn", "onion": "onion", "paprika": "pepper", "peperoncino": "hot pepper", "salad": "salad", "soup": "bowl of soup", "burrito": "burrito", "champignon": "mushroom",
    "fries": "french fries", "french": "french fries", "honey": "honey", "plate": "plate", "lasagna": "lasagna", "pizza": "pizza", "pomodori": "tomato", "pumpkin": "pumpkin", "zucca": "pumpkin",
    "sandwich": "sandwich", "tramezzino": "sandwich", "spaghetti": "spaghetti", "moon": "moon", "jupiter": "planet", "mars": "planet", "saturn": "planet", "venus": "planet", "earth": "globe", "globe": "globe",
    "mondo": "globe", "map": "map", "envelope": "envelope", "envelop": "envelope", "lettera": "envelope", "mail": "envelope", "mailbox": "mailbox", "eraser": "eraser", "feather": "feather", "lamp": "lamp", "lampada": "lamp",
    "magnifying": "magnifying glass", "lente": "magnifying glass", "magnificator": "magnifying glass", "mag": "magnifying glass", "megaphone": "megaphone", "pin": "pin", "brain": "brain", "ear": "ear", "eye": "eye", "hand": "hand", "lips": "mouth", "mouth": "mouth",
    "foot": "footprint", "fingerprint": "fingerprint", "dente": "tooth", "hat": "hat", "cap": "cap", "crown": "crown", "couronne": "crown", "fedora": "hat", "sombrero": "hat", "tophat": "top hat", "rings": "rings", "pantyhose": "tights",
    "camicia": "shirt", "boot": "boot", "mitten": "mitten", "pattino": "skate", "sunglasses": "sunglasses", "shirt": "shirt", "shoe": "shoe", "shoes": "shoes", "tie": "tie", "shorts": "shorts", "guanti": "gloves", "vestito": "dress",
    "smiley": "smiley face", "blueman": "stick figure", "sm": "stick figure", "stickyman": "stick figure", "boy": "boy", "ragazzo": "boy", "girl": "girl", "ragazza": "girl", "man": "man", "woman": "woman", "donna": "woman", "baby": "baby", "bambina": "girl",
    "clown": "clown", "fireman": "firefighter", "policeman": "police officer", "dancer": "dancer", "bride": "bride", "groom": "groom", "flower": "flower", "fiore": "flower", "daffodil": "flower", "daisy": "daisy", "geranium": "flower",
    "magnolia": "flower", "rose": "rose", "rosa": "rose", "tulips": "flowers", "sakura": "flower", "bouquet": "bouquet of flowers", "flowers": "flowers", "tree": "tree", "albero": "tree", "arbre": "tree", "bamboo": "bamboo", "cactus": "cactus", "cacuts": "cactus",
    "leaf": "leaf", "foglie": "leaf", "mushroom": "mushroom", "toadstool": "mushroom", "palmtree": "palm tree", "shamrock": "shamrock", "acorn": "acorn", "heart": "heart", "fireworks": "fireworks", "gift": "gift", "pacco": "gift", "rainbow": "rainbow", "snowman": "snowman",
    "record": "record", "records": "record", "drum": "drum", "africandrum": "drum", "drums": "drum", "guitar": "guitar", "cello": "cello", "flute": "flute", "horn": "French horn", "headphones": "headphones", "harp": "harp", "maracas": "maracas", "microphone": "microphone",
    "note": "musical note", "piano": "piano", "saxophone": "saxophone", "trombone": "trombone", "trumpet": "trumpet", "violin": "violin", "xylophone": "xylophone", "balloon": "balloon", "baloon": "balloon", "balloons": "balloons", "palloncini": "balloons", "cross": "cross",
    "ball": "ball", "baseball": "baseball", "volley": "volleyball", "beachball": "beach ball", "soccer": "soccer ball", "football": "football", "golf": "golf ball", "surfboard": "surfboard", "teddy": "teddy bear", "teddybear": "teddy bear", "rubber": "rubber duck", "boomerang": "boomerang",
    "dartboard": "dartboard", "sledge": "sled", "knitting": "yarn", "microscopio": "microscope", "flask": "flask", "scale": "scale", "siringa": "syringe", "trophy": "trophy", "ribbon": "ribbon", "clock": "clock", "orologio": "clock", "sandglass": "hourglass", "clessidra": "hourglass", "coins": "coins",
    "diamond": "diamond", "piggybank": "piggy bank", "portafoglio": "wallet", "cloud": "cloud", "clouds": "clouds", "cloudy": "cloud", "lightning": "lightning", "sun": "sun", "sole": "sun", "fire": "fire", "flame": "fire", "gun": "gun", "ak": "rifle", "bomb": "bomb", "katana": "sword", "sword": "sword", "longsword": "sword", "axe": "axe", "anvil": "anvil",
    "hammer": "hammer", "martellare": "hammer", "vacuum": "vacuum cleaner", "broom": "broom", "bucket": "bucket", "secchio": "bucket", "bussola": "compass", "calamita": "magnet", "chiave": "key", "key": "key", "drill": "drill", "lighter": "lighter", "saw": "saw", "sega": "saw", "motosega": "chainsaw",
    "screwdriver": "screwdriver", "shovel": "shovel", "roundpointshovel": "shovel", "telescope": "telescope", "thermometer": "thermometer", "toothbrush": "toothbrush", "trowel": "trowel", "umbrella": "umbrella", "wrench": "wrench", "lock": "padlock", "pan": "pan", "viti": "screw", "ruota": "gear", "cog": "gear",
    "boat": "boat", "sailboat": "sailboat", "ship": "ship", "knot": "knot", "hummer": "car", "chevrolet": "car", "car": "car", "autos": "car", "aircraft": "airplane", "plane": "airplane", "airplane": "airplane", "bicicletta": "bicycle", "bicycle": "bicycle", "bike": "bicycle", "rocket": "rocket", "cobra": "car", "trattore": "tractor",
    "ambulans": "ambulance", "ambulanza": "ambulance", "anchor": "anchor", "truck": "truck", "bmw": "car", "bus": "bus", "dodge": "car", "engine": "fire engine", "motorcycle": "motorcycle", "redcar": "car", "sportcar": "car", "skoda": "car", "toyota": "car", "tramway": "tram", "aerestatico": "hot-air balloon", "biberon": "baby bottle", "candela": "candle", "candle": "candle", "igloo": "igloo",
    "tenda": "tent", "zaino": "backpack", "stetoscopio": "stethoscope", "spaventapasseri": "scarecrow", "principessa": "princess", "fattoria": "farm", "cigarette": "cigarette", "star": "star", "arrow": "arrow", "skull": "skull", "angel": "angel", "fish": "fish", "lion": "lion", "bird": "bird", "elephants": "elephant", "rabbit": "rabbit", "chair": "chair", "door": "door", "window": "window", "watch": "watch", "train": "train", "tractor": "tractor",
}
# Folders whose every file shows the same kind of thing.
CLIP_FOLDERS = {
    "animals/birds/penguin": "penguin", "animals/birds": "bird", "animals/bugs": "bug", "animals/dinosaurs": "dinosaur", "animals/fish": "fish", "animals/mammals/bears": "bear",
    "animals/mammals/dogs": "dog", "animals/mammals/horses": "horse", "animals/mammals/housecats": "cat", "buildings/homes": "house", "computer/folders": "folder", "electronics/bulb": "light bulb",
    "people/clothing/hats": "hat", "people/smilies": "smiley face", "people/stickmen": "stick figure", "plants/flowers": "flower", "plants/trees/evergreen": "tree", "signs_and_symbols/clocks": "clock",
    "transportation/vehicles/hummers": "car", "shapes/stars": "star", "shapes/arrows": "arrow", "shapes/jigsaw": "puzzle piece", "recreation/games/cards": "playing card", "recreation/games/dice": "dice",
    "recreation/games/chess": "chess piece", "signs_and_symbols/flags": "flag", "transportation/roadsigns": "road sign", "recreation/holiday/valentines": "heart",
}
