"""Which composition of all systems makes the best recognizer, and at what cost?

A point sets everything at once: the systems' shares, images per person, a band of IDiff-Face and
the range of m that CemiFace is asked for. TPE draws the points that earlier trials suggest, and
successive halving stops poor trials. The best trials form a Pareto front in accuracy, in the
seconds of generation and in leakage: the similarity of images to two faces of each of a thousand
people that the shipped generators learned from (docs/study/README.md has the commands that wrote
these embeddings).
"""

from factory.search import Asha, Choice, KnownFaces, Pool, Real, Space

RECIPES = "jobs/recipes/desk/generate"
TEACHER = {
    "location": "package:weights/teacher/recognizer.safetensors",
    "sha256": "9ddfd824e9fbd165fa36f30fdcd1c7840be2bffac1993f26c880fc04fd69d722",
    "licence": "Apache-2.0",
}
KNOWN = KnownFaces(
    location="package:studio/known.safetensors",
    sha256="d612dc46dfd0841252bc99cc40a3b50c19f53c2760c12caf5353a0e7a7a4df4d",
)


def composition(point):
    """Return the composition of a point."""
    wide = ("identities.count=400", "identities.images_each=16")
    pools = {
        "idiff_face": Pool(f"{RECIPES}/idiff_face.yaml", *wide),
        "dcface": Pool(f"{RECIPES}/dcface.yaml"),
        "cemiface": Pool(f"{RECIPES}/cemiface.yaml", f"options.m={point['m']}"),
        "id3": Pool(f"{RECIPES}/id3.yaml"),
        "studio_plain": Pool(f"{RECIPES}/studio_plain.yaml", "identities.images_each=10"),
    }
    each = {"images_each": point["images_each"], "least_images": point["images_each"]}
    views = {
        system: pool.view(**each, weight=point[f"share_{system}"]) for system, pool in pools.items()
    }
    views["idiff_face"].fields["centre_band"] = [-1.0, point["idiff_face_below"]]
    return {"images": 1200, "recognizer": TEACHER, "pools": views}


SPACE = Space(
    name="joint",
    question="Which composition of all systems makes the best recognizer, and at what cost?",
    axes={
        **{
            f"share_{system}": Real(0.0, 1.0, digits=2)
            for system in ("idiff_face", "dcface", "cemiface", "id3", "studio_plain")
        },
        "images_each": Choice(6, 8, 10),
        "m": Choice([0.4, 0.76], [0.5, 0.84], [0.6, 0.92]),
        "idiff_face_below": Choice(0.76, 0.80, 1.0),
    },
    composition=composition,
    search="tpe",
    objectives=("accuracy", "generation_seconds", "leakage"),
    known=KNOWN,
    asha=Asha(grace=2, factor=2),
)
