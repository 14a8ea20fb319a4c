"""Which similarity m to the inquiry should CemiFace be asked for?

Each m has a pool, of which 8 images of each of 200 people are taken. The paper asks the same in
table 1 (docs/papers.md 3.3).
"""

from factory.search import Choice, Pool, Space


def composition(point):
    """Return the composition of a point."""
    pool = Pool("jobs/recipes/desk/generate/cemiface.yaml", f"options.m={point['m']}")
    return {"pools": {"cemiface": pool.view(images_each=8)}}


SPACE = Space(
    name="requested_similarity",
    question="Which similarity to the inquiry should CemiFace be asked for?",
    axes={"m": Choice(-0.4, 0.0, 0.2, 0.4, 0.6, 0.76, 0.92)},
    composition=composition,
    search="grid",
)
