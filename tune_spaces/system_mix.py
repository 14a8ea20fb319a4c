"""Which share of the images should each system make? `studio_plain` plays DigiFace's part.

Weights are relative: a composition of 1,600 images is shared out in proportion to them, 8 images a
person.
"""

from factory.search import Pool, Real, Space

RECIPES = "jobs/recipes/desk/generate"
POOLS = {
    system: Pool(f"{RECIPES}/{system}.yaml", "identities.count=240", "identities.images_each=8")
    for system in ("idiff_face", "dcface", "cemiface", "id3", "studio_plain")
}


def composition(point):
    """Return the composition of a point."""
    views = {
        system: pool.view(images_each=8, least_images=8, weight=point[system])
        for system, pool in POOLS.items()
    }
    return {"images": 1600, "pools": views}


SPACE = Space(
    name="system_mix",
    question="Which share of the images should each system make?",
    axes={system: Real(0.0, 1.0, digits=2) for system in POOLS},
    composition=composition,
    search="random",
)
