"""The fillers of the tiny world's sentences (ours): short lists that all event families share.

Words of one list differ in sound, so that what matters can be heard, and each list serves several families,
so that every word is met in many places. Those that follow "a" begin with a consonant. No digits, no
apostrophes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_ONE_WORD = {
    "thing": "wallet umbrella camera jacket backpack necklace notebook suitcase scarf watch ring laptop "
    "passport bracelet helmet telescope blanket pillow",
    "machine": "heater fridge kettle oven toaster television radio printer computer bicycle lamp car dishwasher alarm",
    "room": "kitchen bedroom cellar balcony hallway attic garage workshop nursery shed",
    "place": "station market library park airport beach office school hospital museum theatre bakery castle "
    "harbour stadium hotel church zoo circus bank",
    "person": "brother sister mother father uncle aunt cousin neighbour friend grandmother grandfather "
    "daughter teacher boss nephew niece partner flatmate",
    "town": "Paris London Berlin Madrid Boston Chicago Tokyo Vienna Lisbon Athens Oslo Sydney Toronto "
    "Florence Prague Geneva Havana Cairo",
    "food": "soup pizza chicken salad noodles pancakes chocolate curry bread cheese sausages rice dumplings "
    "cookies mushrooms spaghetti potatoes pudding",
    "drink": "tea coffee juice lemonade cocoa milk cider",
    "animal": "dog cat rabbit parrot hamster horse turtle kitten puppy goat monkey goose squirrel donkey",
    "body": "finger wrist shoulder leg knee rib nose thumb",
    "subject": "history biology music maths geography French Spanish driving physics English cooking law",
    "occasion": "wedding concert picnic party meeting dinner lecture parade festival barbecue reunion ceremony",
    "sport": "football tennis hockey basketball chess cricket rugby badminton",
    "weather": "rain storm snow fog hail thunder wind frost",
    "rough": "storm hail wind thunder blizzard rain",
    "vehicle": "train bus flight ferry taxi shuttle",
    "instrument": "piano violin guitar trumpet flute cello harp saxophone clarinet",
    "often": "morning evening night weekend afternoon Monday Saturday Thursday",
    "job": "nurse driver baker gardener painter waiter lawyer plumber pilot doctor farmer singer dentist carpenter",
    "colour": "red green yellow purple orange silver brown golden blue",
    "plants": "roses tomatoes tulips strawberries carrots sunflowers beans lilies pumpkins",
    "furniture": "sofa table carpet chair bed desk curtain mattress mirror bookshelf cupboard wardrobe",
    "hobby": "dancing painting cooking swimming skating climbing knitting fishing running gardening",
    "month": "January March April June August October December",
    "name": "Anna Peter Maria Oliver Julia Martin Sophie Daniel Emma Lucas Victor Helen Thomas Robert Clara George",
    "pet": "Rocky Bella Max Luna Daisy Charlie Molly Oscar Ruby Simba Pepper Coco Biscuit Ginger",
}
_MANY_WORDS = {
    "illness": "fever|headache|cough|toothache|cold|rash|sunburn|sore throat|migraine",
    "past": "this morning|yesterday|today|last week|last weekend|last month|on Monday|on Wednesday|"
    "on Thursday|on Saturday|two days ago|this week",
    "future": "tomorrow|tonight|next week|next month|next weekend|on Friday|on Tuesday|in December|"
    "in the summer|in March|in the autumn",
}

SLOTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: tuple(text.split()) for name, text in _ONE_WORD.items()}
    | {name: tuple(text.split("|")) for name, text in _MANY_WORDS.items()}
)
"""Every list of fillers by the name that stands in braces in a phrasing."""
