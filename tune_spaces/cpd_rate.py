"""How much of the context should IDiff-Face drop in training (contextual partial dropout)?

It compares three fine-tunes of stage one under the first teacher, which were trained equally long
and differ only in the dropout rate (docs/papers.md 2.2), by the recipe that they were made for.
"""

from factory.search import Choice, Pool, Space

WEIGHTS = {0.0: "cpd0", 0.25: "cpd25", 0.5: "cpd50"}


def composition(point):
    """Return the composition of a point."""
    name = WEIGHTS[point["cpd_rate"]]
    pool = Pool(
        "jobs/recipes/desk/generate/idiff_face_full.yaml",
        f"weights.denoiser.location=package:weights/idiff_face/{name}.safetensors",
        "weights.denoiser.sha256=''",
        "weights.teacher.location=package:weights/teacher/first.safetensors",
        "weights.teacher.sha256=''",
        "sampler.guidance_scale=1.75",
        "identities.source=two_stage",
        "options.perturb=null",
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
