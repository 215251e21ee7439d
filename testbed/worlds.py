"""The two test worlds: the one that we drew, and real pictures."""

from __future__ import annotations

from testbed.measure import World
from testbed.pictures import judge as pictures_judge
from testbed.pictures import prompts as pictures_prompts
from testbed.pictures import vocabulary as pictures
from testbed.world import judge as drawn_judge
from testbed.world import prompts as drawn_prompts
from testbed.world import vocabulary as drawn

DRAWN = World(
    drawn_prompts,
    drawn_judge.read,
    {"development": drawn.DEVELOPMENT, "held-out": drawn.HELD_OUT},
)
PICTURES = World(
    pictures_prompts,
    pictures_judge.read,
    {"development": pictures.DEVELOPMENT, "held-out": pictures.HELD_OUT},
)
