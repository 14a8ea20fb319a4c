"""Where should DCFace's styles come from, and how often should an identity's first image count?

`repeats` is how often DCFace's one image per person is added (docs/papers.md 1.3). `grid` is the k
of the k x k style patches that its weights were trained with. Train those of 1 and 5 first:

    factory generate desk/generate/studio_train.yaml --out runs/studio/train
    factory train_diffusion desk/train/dcface_grid1.yaml --out runs/dcface_grid1
    factory train_diffusion desk/train/dcface_grid5.yaml --out runs/dcface_grid5
"""

from factory.search import Choice, Pool, Space

SHIPPED = 3
ATTRIBUTES = "{location: 'package:weights/attributes/attributes.safetensors', licence: Apache-2.0}"


def composition(point):
    """Return the composition of a point."""
    sets = [f"options.styles.draw={point['draw']}"]
    if point["grid"] != SHIPPED:
        file = f"runs/dcface_grid{point['grid']}/denoiser.safetensors"
        sets += [f"weights.denoiser.location={file}", "weights.denoiser.sha256=''"]
    if point["draw"] == "matched":
        sets.append(f"weights.attributes={ATTRIBUTES}")
    pool = Pool("jobs/recipes/desk/generate/dcface.yaml", *sets)
    pools = {"faces": pool.view(images_each=8)}
    if point["repeats"]:
        pools["first"] = pool.view(identities_of="faces", images_each=1, repeat=point["repeats"])
    return {"pools": pools}


SPACE = Space(
    name="style_mix",
    question="Where should styles come from, and how often should a first image stand?",
    axes={
        "grid": Choice(1, SHIPPED, 5),
        "draw": Choice("random", "matched", "similar"),
        "repeats": Choice(0, 2, 5),
    },
    composition=composition,
    search="grid",
)
