"""Are many people with few images each better than few with many, at a budget of 1,600 images?

One pool of IDiff-Face serves every trial.
"""

from factory.search import Choice, Pool, Space

WIDE = Pool(
    "jobs/recipes/desk/generate/idiff_face.yaml",
    "identities.count=400",
    "identities.images_each=16",
)


def composition(point):
    """Return the composition of a point."""
    people, each = point["people_by_images"]
    view = WIDE.view(identities=people, images_each=each, least_images=each)
    return {"images": people * each, "pools": {"idiff_face": view}}


SPACE = Space(
    name="ids_by_images",
    question="At a fixed budget of images: many people with few each, or few with many?",
    axes={"people_by_images": Choice([100, 16], [160, 10], [200, 8], [320, 5], [400, 4])},
    composition=composition,
    search="grid",
    reports=1,
)
