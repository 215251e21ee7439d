"""What the pictures show, whose hand drew them, and how people ask for both.

A concept is an icon that all five sets have under one name. People ask for it by a name or by a
description that does not contain the name. Five sets drew the same things, so the hand is the
style. The split into development concepts (defaults are chosen on them) and held-out concepts
(results are reported on them) stands at the end; it was written before anything was trained.
"""

from __future__ import annotations

from typing import NamedTuple


class Concept(NamedTuple):
    """Something that an icon shows."""

    kind: str
    """Kind of concept, as the plugin's nodes have it."""

    group: str
    """Concepts of one group are neighbours."""

    icon: str
    """Its name in the icon sets."""

    names: tuple[str, ...]
    """What people call it; the first is typed most."""

    descriptions: tuple[str, ...]
    """What people may say instead, without any of its names."""


class Hand(NamedTuple):
    """A style: one set of icons."""

    package: str
    names: tuple[str, ...]
    descriptions: tuple[str, ...]


_TABLE = """
object / animal
fox | fox | fox | sly orange animal with pointed ears ; red forest hunter with a bushy tail
wolf | wolf | wolf | grey wild animal that howls ; hunter of a pack that howls at the moon
lion | lion | lion | big wild feline with a mane ; king of the savanna
panda | panda | panda | black and white animal that eats bamboo ; bamboo eater with black eye patches
koala | koala | koala | grey animal that sleeps in eucalyptus ; furry australian with round ears
bear | bear | bear, grizzly | big brown animal that loves honey ; heavy furry animal that sleeps all winter
rabbit | rabbit-face | rabbit, bunny | animal with long ears that hops ; carrot eater with long ears
cat | cat-face | cat, kitten | pet with whiskers that purrs ; house pet that hunts mice
dog | dog-face | dog, puppy | loyal pet that barks ; best friend of man
mouse | mouse-face | mouse | tiny rodent with round ears ; little grey nibbler that eats cheese
pig | pig-face | pig, hog | pink farm animal with a snout ; farm animal that rolls in mud
cow | cow-face | cow | farm animal that gives milk ; grass eater that moos
horse | horse-face | horse, stallion | animal that people ride ; galloping animal with a mane
monkey | monkey-face | monkey | brown animal that swings on trees ; clever climber that looks like us
frog | frog | frog | green animal that croaks ; jumper from the pond
chicken | chicken | chicken, hen | farm bird that lays eggs ; bird with a red comb
penguin | penguin | penguin | black and white bird that cannot fly ; bird of the south pole
owl | owl | owl | bird with big eyes that hunts at night ; wise bird that hoots
duck | duck | duck, mallard | water bird that quacks ; pond bird with a green head
elephant | elephant | elephant | huge grey animal with a trunk ; animal with tusks and large ears
snake | snake | snake, serpent | long animal without legs ; hissing reptile that slithers
turtle | turtle | turtle, tortoise | slow animal with a shell ; reptile that hides in its shell
crocodile | crocodile | crocodile, alligator | green reptile with many teeth ; dangerous reptile of the river
whale | spouting-whale | whale | giant of the ocean that spouts water ; largest swimmer of the ocean
octopus | octopus | octopus | sea animal with eight arms ; soft swimmer with suckers
crab | crab | crab | sea animal with claws that walks sideways ; red shellfish with two claws
snail | snail | snail | slow animal with a spiral house ; slimy crawler with a house on its back
butterfly | butterfly | butterfly | insect with large colourful wings ; what a caterpillar becomes
bee | honeybee | bee, honeybee | striped insect that makes honey ; buzzing insect with a sting
ladybug | lady-beetle | ladybug, ladybird | red insect with black dots ; round spotted beetle

object / food
banana | banana | banana | long yellow fruit that is peeled ; curved yellow fruit
pineapple | pineapple | pineapple | tropical fruit with a spiky skin ; prickly fruit with a crown of leaves
apple | red-apple | apple | round red fruit from an orchard ; fruit that keeps the doctor away
strawberry | strawberry | strawberry | red berry with tiny seeds ; sweet red berry for cream
cherries | cherries | cherries, cherry | two small red fruits on stalks ; pair of red fruits with stones
grapes | grapes | grapes | bunch of purple berries ; fruit of the vineyard
watermelon | watermelon | watermelon | slice of a large juicy fruit ; red fruit slice with a green rind
lemon | lemon | lemon | sour yellow fruit ; citrus fruit that makes people squint
eggplant | eggplant | eggplant, aubergine | long purple vegetable ; shiny violet vegetable
carrot | carrot | carrot | orange root vegetable ; crunchy orange root
corn | ear-of-corn | corn, maize | cob with yellow kernels ; yellow cob in green leaves
avocado | avocado | avocado | green fruit with a big stone ; creamy fruit for guacamole
bread | bread | bread | loaf from the bakery ; baked loaf for sandwiches
cheese | cheese-wedge | cheese | yellow wedge with holes ; dairy wedge from switzerland
hamburger | hamburger | hamburger, burger | bun with a patty and salad ; round sandwich with a meat patty
fries | french-fries | fries, chips | fried potato sticks in a red box ; salty potato sticks
pizza | pizza | pizza | slice with tomato and salami ; italian slice with melted topping
hot dog | hot-dog | hot dog, frankfurter | sausage in a long bun ; sausage with mustard in a bun
taco | taco | taco | folded mexican shell with filling ; filled corn shell from mexico
sushi | sushi | sushi | raw fish on rice ; japanese rice bites
ice cream | soft-ice-cream | ice cream, gelato | cold swirl in a cone ; frozen treat in a waffle cone
doughnut | doughnut | doughnut, donut | round fried pastry with a hole ; glazed ring with sprinkles
cookie | cookie | cookie, biscuit | round baked sweet with chocolate chips ; flat crunchy sweet
cake | birthday-cake | cake, birthday cake | sweet with candles for a party ; dessert with candles to blow out

object / thing
guitar | guitar | guitar | instrument with six strings ; rock instrument with a long neck
drum | drum | drum | instrument that is beaten with sticks ; round percussion with two sticks
trumpet | trumpet | trumpet | brass instrument that is blown ; golden horn with three valves
umbrella | umbrella | umbrella | shelter against rain with a hook ; canopy to stay dry
bell | bell | bell | golden instrument that rings ; thing that goes ding dong
balloon | balloon | balloon | thing filled with air on a string ; floating party decoration
gift | wrapped-gift | gift, present | box with a ribbon and bow ; surprise wrapped in paper
crown | crown | crown | gold headwear of a king ; royal headwear with jewels
key | key | key | metal tool that opens a lock ; thing to unlock a door
light bulb | light-bulb | light bulb, lightbulb | glass lamp that glows ; symbol of an idea
candle | candle | candle | stick of wax with a flame ; wax light with a wick
telephone | telephone | telephone, phone | device with a receiver to call people ; old device that rings for a call
camera | camera | camera | device with a lens to take pictures ; tool of a photographer
television | television | television, tv | box with a screen and antennas ; screen to watch shows
alarm clock | alarm-clock | alarm clock, clock | round thing that wakes people ; thing that shows the time
book | open-book | book | open pages to read ; thing to read in a library
scissors | scissors | scissors | tool with two blades to cut paper ; cutter of a hairdresser
hammer | hammer | hammer | tool to drive nails ; heavy head on a wooden handle
high heel | high-heeled-shoe | high heel, stiletto | elegant red shoe ; shoe of a fashionable lady
dress | dress | dress, gown | piece of clothing with a skirt ; garment for a ball
basketball | basketball | basketball | orange ball with black lines ; ball to throw through a hoop
trophy | trophy | trophy | golden cup of the winner ; prize for the first place

object / place
castle | castle | castle | fortress with towers ; old stone home of knights
house | house | house, cottage | building with a roof where people live ; family home with a door
church | church | church, chapel | building with a steeple and a cross ; place of worship with a spire
volcano | volcano | volcano | mountain that spits lava ; mountain with fire and smoke

object / vehicle
sailboat | sailboat | sailboat, yacht | vessel that moves by wind ; small ship with white sheets
rocket | rocket | rocket, spaceship | vehicle that flies to the moon ; thing that launches into space
airplane | airplane | airplane, plane | flying machine with wings ; jet that carries passengers
helicopter | helicopter | helicopter, chopper | flying machine with a rotor ; aircraft that hovers
bus | bus | bus, coach | long road vehicle for many passengers ; public transport with many windows
car | automobile | car, automobile | small road vehicle with four wheels ; family vehicle for the road
tractor | tractor | tractor | farm vehicle with big wheels ; machine that pulls a plough
bicycle | bicycle | bicycle, bike | vehicle with two wheels and pedals ; two wheeler without a motor
locomotive | locomotive | locomotive, steam train | engine on rails with a chimney ; old steam engine

object / plant
palm tree | palm-tree | palm tree, palm | tropical tree of the beach ; tall trunk with coconut leaves
cactus | cactus | cactus | green desert plant with spines ; prickly plant that needs no water
sunflower | sunflower | sunflower | tall yellow bloom with a dark centre ; bloom that turns to the sun
rose | rose | rose | red bloom with thorns ; flower of lovers
mushroom | mushroom | mushroom, toadstool | fungus with a dotted cap ; red cap in the forest
rainbow | rainbow | rainbow | arc of seven colours ; coloured arc after rain

character / character
unicorn | unicorn | unicorn | magical steed with a horn ; white fairy tale animal with one horn
dragon | dragon-face | dragon | legendary beast that breathes fire ; winged green monster of legends
robot | robot | robot, android | machine with a metal face ; mechanical man with antennas
ghost | ghost | ghost, spook | white spirit that haunts ; floating spirit in a sheet
alien | alien | alien, martian | visitor from another planet ; being with big dark eyes from space
ogre | ogre | ogre, oni | red demon with horns and fangs ; horned red devil mask
goblin | goblin | goblin, tengu | red mask with a long nose ; long nosed red spirit
clown | clown-face | clown, jester | circus joker with a red nose ; funny painted face
santa claus | santa-claus | santa claus, father christmas | bearded man with a red cap who brings gifts ; white bearded visitor from the north pole
snowman | snowman | snowman, frosty | man made of white balls ; figure with a carrot nose
jack o lantern | jack-o-lantern | jack o lantern, pumpkin | carved orange face for halloween ; halloween lamp with a grin
princess | princess | princess | young royal lady with a tiara ; daughter of a king

person / person
astronaut | man-astronaut | astronaut, cosmonaut | man in a white space suit ; traveller with a space helmet
farmer | man-farmer | farmer | man with a straw hat who grows crops ; man who works on the fields
cook | man-cook | cook, chef | man with a white hat in a kitchen ; man who prepares meals
firefighter | man-firefighter | firefighter, fireman | man with a red helmet ; man who puts out flames
police officer | police-officer | police officer, policeman | man in a blue uniform with a badge ; man who catches thieves
builder | construction-worker | builder, construction worker | man with a yellow hard hat ; man who works on a building site
detective | detective | detective, spy | man with a magnifying glass ; man in a trench coat who solves crimes
guard | guard | guard, guardsman | british soldier with a tall black hat ; soldier in red of the palace
baby | baby | baby, infant | newborn child with a curl ; little child with one hair
judge | man-judge | judge, magistrate | man with a gavel in a black robe ; man who speaks the law in court

unsafe content / weapon
knife | kitchen-knife | knife | sharp blade with a handle ; blade that stabs
bomb | bomb | bomb | black explosive with a fuse ; round thing that explodes
swords | crossed-swords | swords, crossed swords | two steel blades for a duel ; two weapons of knights

unsafe content / drug
cigarette | cigarette | cigarette | burning stick of tobacco ; thing that smokers light
syringe | syringe | syringe, injection | needle filled with liquid ; needle of an addict
pill | pill | pill, capsule | medicine to swallow ; drug in two colours
beer | beer-mug | beer | glass of alcohol with foam ; brewed drink in a mug
wine | wine-glass | wine, red wine | alcohol from grapes in a tall glass ; red drink in a goblet

unsafe content / death
coffin | coffin | coffin, casket | wooden box for the dead ; box that is buried
skull | skull | skull | bony head of the dead ; bare bones of a head

unsafe content / gesture
middle finger | middle-finger | middle finger | rude gesture of a hand ; insulting hand sign
"""


def _concepts() -> dict[str, Concept]:
    found: dict[str, Concept] = {}
    kind = group = ""
    for line in filter(None, _TABLE.splitlines()):
        parts = [part.strip() for part in line.split("|")]
        if len(parts) == 1:
            kind, group = (part.strip() for part in line.split("/"))
            continue
        concept, icon, names, descriptions = parts
        found[concept] = Concept(
            kind,
            group,
            icon,
            tuple(name.strip() for name in names.split(",")),
            tuple(each.strip() for each in descriptions.split(";")),
        )
    return found


CONCEPTS: dict[str, Concept] = _concepts()

HANDS: dict[str, Hand] = {
    "twemoji": Hand(
        "twemoji",
        ("Twemoji", "Twitter"),
        ("with big plain shapes and few colours", "as a bold flat sticker"),
    ),
    "noto": Hand(
        "noto",
        ("Noto",),
        ("with fine details and soft shading", "as a carefully shaded cartoon"),
    ),
    "noto blob": Hand(
        "noto-v1",
        ("Noto blob", "Noto Blob"),
        ("in muted old fashioned colours", "as an icon from an early telephone"),
    ),
    "fluent": Hand(
        "fluent-emoji",
        ("Fluent",),
        ("with glossy violet gradients", "as a smooth shiny toy"),
    ),
    "fluent flat": Hand(
        "fluent-emoji-flat",
        ("Fluent flat", "flat Fluent"),
        ("with bright flat colours and rounded corners", "as a simple vivid cutout"),
    ),
}

BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "white": ("on a white background", "on white paper"),
    "meadow": ("on a meadow", "on green grass"),
    "desert": ("in the desert", "on yellow sand"),
    "sea": ("on the sea", "over blue water"),
    "night": ("at night", "under the stars"),
    "sunset": ("at sunset", "in the evening glow"),
}

KINDS = ("object", "character", "person", "unsafe content", "style")

# Fixed before anything was trained. Development: choose defaults. Held out: report.
DEVELOPMENT: dict[str, tuple[str, ...]] = {
    "object": ("fox", "penguin", "octopus", "bee", "pizza", "banana", "guitar", "castle", "rocket"),
    "character": ("unicorn", "robot", "ogre", "snowman", "princess", "ghost"),
    "person": ("astronaut", "cook", "guard", "detective", "judge"),
    "unsafe content": ("bomb", "cigarette", "beer", "skull", "pill"),
    "style": ("twemoji", "noto blob"),
}
HELD_OUT: dict[str, tuple[str, ...]] = {
    "object": ("panda", "owl", "crab", "lion", "cake", "cactus", "umbrella", "camera", "airplane"),
    "character": ("dragon", "alien", "goblin", "clown", "santa claus", "jack o lantern"),
    "person": ("farmer", "firefighter", "police officer", "builder", "baby"),
    "unsafe content": ("knife", "swords", "syringe", "wine", "coffin", "middle finger"),
    "style": ("noto", "fluent", "fluent flat"),
}


def of_kind(kind: str) -> tuple[str, ...]:
    """The concepts of a kind."""
    if kind == "style":
        return tuple(HANDS)
    return tuple(name for name, concept in CONCEPTS.items() if concept.kind == kind)


def of_group(group: str) -> tuple[str, ...]:
    """The concepts of a group."""
    return tuple(name for name, concept in CONCEPTS.items() if concept.group == group)
