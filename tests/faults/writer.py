"""Makes the shards of a claimed folder in an order of its own, with no lock: `writer.py FOLDER`."""

import random
import sys

from factory.plan import shards
from factory.provenance import versions
from factory.recipe import GenerateRecipe, parse
from factory.shards.claim import read_claim
from factory.shards.store import Store
from factory.stages.line import Assignment, Line
from factory.stages.work import ShardWork

store = Store(sys.argv[1])
claim = read_claim(store)
stages = ("identities", "styles:0", "render", "screen", "commit")
line = Line(Assignment(claim["recipe"], store, claim["content_digest"], versions()), stages)
recipe = parse(claim["recipe"])
assert isinstance(recipe, GenerateRecipe)
planned = list(shards(recipe))
random.shuffle(planned)
for shard in planned:
    line(ShardWork(shard))
