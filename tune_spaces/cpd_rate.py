"""How much of the context should IDiff-Face drop in training (contextual partial dropout)?

It compares three fine-tunes that are trained equally long and differ only in the dropout rate
(docs/papers.md 2.2). Train them first, each for some ten minutes:

    factory generate desk/generate/studio_train.yaml --out runs/studio/train
    factory train_diffusion desk/train/idiff_face_cpd0.yaml --out runs/idiff_face_cpd0

and so on with cpd25 and cpd50.
"""

from factory.search import Choice, Pool, Space

WEIGHTS = {0.0: "cpd0", 0.25: "cpd25", 0.5: "cpd50"}


def composition(point):
    """Return the composition of a point."""
    name = WEIGHTS[point["cpd_rate"]]
    pool = Pool(
        "jobs/recipes/desk/generate/idiff_face_full.yaml",
        f"weights.denoiser.location=runs/idiff_face_{name}/denoiser.safetensors",
        "weights.denoiser.sha256=''",
        "options.perturb=null",  # dropout alone spreads a person's images
    )
    return {"pools": {"idiff_face": pool.view()}}


SPACE = Space(
    name="cpd_rate",
    question="How much of the context should IDiff-Face drop in training?",
    axes={"cpd_rate": Choice(*WEIGHTS)},
    composition=composition,
    search="grid",
    reports=1,
)
