"""Do the two steps of a student teach as much as its teacher's twelve, and as the papers' fifty?

Each point has 200 people x 10 of IDiff-Face. `papers` is the teacher under the papers' sampler:
DDIM of 50 steps, eta 1, float32, without guidance.
"""

from factory.search import Choice, Pool, Space

RECIPES = "jobs/recipes/desk/generate"
PAPERS = "sampler={name: ddim, steps: 50, eta: 1.0, batch_size: 16, dtype: float32}"
POOLS = {
    "student": (f"{RECIPES}/idiff_face.yaml",),
    "teacher": (f"{RECIPES}/idiff_face_full.yaml",),
    "papers": (f"{RECIPES}/idiff_face_full.yaml", PAPERS),
}


def composition(point):
    """Return the composition of a point."""
    pool = Pool(*POOLS[point["sampler"]], "identities.images_each=10")
    return {"pools": {"idiff_face": pool.view()}}


SPACE = Space(
    name="samplers",
    question="Do a student's two steps teach as much as many steps of its teacher?",
    axes={"sampler": Choice(*POOLS)},
    composition=composition,
    search="grid",
    seeds=(1, 2, 3),
    reports=1,
)
