"""Should the systems of a mix make images of the same people, or each of people of its own?

Each mix has 1,440 images of 180 people x 8, in even shares. With `own`, each system brings its own
people. With `shared`, each person has images by all systems of the mix, under one label.
"""

from factory.search import Choice, Pool, Space

RECIPES = "jobs/recipes/desk/generate"
POOLS = {
    "idiff_face": Pool(
        f"{RECIPES}/idiff_face.yaml", "identities.count=400", "identities.images_each=16"
    ),
    # More people, because the other systems' banks pass over some whom this one takes.
    "dcface": Pool(f"{RECIPES}/dcface.yaml", "identities.count=300"),
    "cemiface": Pool(f"{RECIPES}/cemiface.yaml"),
    "id3": Pool(f"{RECIPES}/id3.yaml"),
}


def composition(point):
    """Return the composition of a point."""
    first, *others = systems = point["mix"].split(" + ")
    each = 8 if point["people"] == "own" else 8 // len(systems)
    views = {name: POOLS[name].view(images_each=each, least_images=each) for name in systems}
    if point["people"] == "shared":
        for name in others:
            views[name].fields["identities_of"] = first
    return {"images": 1440, "pools": views}


SPACE = Space(
    name="shared_people",
    question="Should systems of a mix make images of the same people, or each of its own?",
    axes={
        "mix": Choice("cemiface + id3", "cemiface + dcface + id3 + idiff_face"),
        "people": Choice("own", "shared"),
    },
    composition=composition,
    search="grid",
    reports=1,
)
