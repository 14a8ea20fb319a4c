"""Where should DCFace's styles come from, and how often should an identity's first image count?

`repeats` is how often DCFace's one image per person is added (docs/papers.md 1.3). `grid` is the k
of the k x k style patches that its weights were trained with. Train them first:

    factory generate desk/generate/studio_train.yaml --out runs/studio/train
    factory train_diffusion desk/train/dcface_grid1.yaml --out runs/dcface_grid1

and so on with grid3 and grid5.
"""

from factory.search import Choice, Pool, Space

ATTRIBUTES = "{location: 'package:weights/attributes/attributes.safetensors', licence: Apache-2.0}"


def composition(point):
    """Return the composition of a point."""
    file = f"runs/dcface_grid{point['grid']}/denoiser.safetensors"
    sets = [f"options.styles.draw={point['draw']}", f"weights.denoiser.location={file}"]
    if point["draw"] == "matched":
        sets.append(f"weights.attributes={ATTRIBUTES}")
    pool = Pool("jobs/recipes/desk/generate/dcface_full.yaml", *sets)
    pools = {"faces": pool.view(images_each=8)}
    if point["repeats"]:
        pools["first"] = pool.view(identities_of="faces", images_each=1, repeat=point["repeats"])
    return {"pools": pools}


SPACE = Space(
    name="style_mix",
    question="Where should styles come from, and how often should a first image stand?",
    axes={
        "grid": Choice(1, 3, 5),
        "draw": Choice("random", "matched", "similar"),
        "repeats": Choice(0, 2, 5),
    },
    composition=composition,
    search="grid",
)
