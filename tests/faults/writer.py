"""Makes the shards of a claimed folder in an order of its own, with no lock: `writer.py FOLDER`."""

import random
import sys

from factory.datasets.claim import read_claim
from factory.datasets.provenance import versions
from factory.datasets.store import Store
from factory.generation.commit import Committer
from factory.generation.make import Maker
from factory.generation.work import Assignment
from factory.plan import shards
from factory.recipe import GenerateRecipe, parse

store = Store(sys.argv[1])
claim = read_claim(store)
assignment = Assignment(claim["recipe"], store, claim["content_digest"], versions())
make, commit = Maker(assignment), Committer(assignment)
recipe = parse(claim["recipe"])
assert isinstance(recipe, GenerateRecipe)
planned = list(shards(recipe))
random.shuffle(planned)
for shard in planned:
    commit(make(shard))
