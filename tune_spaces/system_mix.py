"""Which systems should make the images, alone or together?

The systems of a mix share 1,600 images evenly, with 8 images per person. `studio_plain` takes the
part of DigiFace, the rendered faces.
"""

from factory.search import Choice, Pool, Space

RECIPES = "jobs/recipes/desk/generate"
POOLS = {
    "idiff_face": Pool(
        f"{RECIPES}/idiff_face.yaml", "identities.count=400", "identities.images_each=16"
    ),
    "dcface": Pool(f"{RECIPES}/dcface.yaml"),
    "cemiface": Pool(f"{RECIPES}/cemiface.yaml"),
    "id3": Pool(f"{RECIPES}/id3.yaml"),
    "studio_plain": Pool(f"{RECIPES}/studio_plain.yaml", "identities.images_each=10"),
}


def composition(point):
    """Return the composition of a point."""
    systems = POOLS if point["mix"] == "all" else point["mix"].split(" + ")
    views = {name: POOLS[name].view(images_each=8, least_images=8) for name in systems}
    return {"images": 1600, "pools": views}


SPACE = Space(
    name="system_mix",
    question="Which systems should make the images, alone or together?",
    axes={
        "mix": Choice(
            *POOLS, "idiff_face + studio_plain", "idiff_face + dcface", "cemiface + id3", "all"
        )
    },
    composition=composition,
    search="grid",
)
