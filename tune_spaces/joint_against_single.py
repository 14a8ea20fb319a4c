"""Is the best composition that `joint` found better than the best single system, at 1,200 images?

`BEST` is the best point of `tune_spaces/joint.py --samples 20`, where seed 1 chose it among twenty,
with the weights of version 0.1. Its m was 0 then, which that denoiser hardly answered to; it is a
similarity of one person's images now.
`SINGLE` is the best system of `system_mix`. Other seeds judge here, so that the luck of that choice
does not count.
"""

from factory.search import Choice, Pool, Space
from factory.search.space import load_space

BEST = {
    "share_idiff_face": 0.25,
    "share_dcface": 0.07,
    "share_cemiface": 0.64,
    "share_id3": 0.73,
    "share_studio_plain": 0.61,
    "images_each": 6,
    "m": 0.65,
    "idiff_face_below": 1.0,
}
SINGLE = "id3"


def composition(point):
    """Return the composition of a point."""
    if point["composition"] == "joint":
        return load_space("tune_spaces/joint.py").composition(BEST)
    each = BEST["images_each"]
    pool = Pool(f"jobs/recipes/desk/generate/{SINGLE}.yaml")
    return {"images": 1200, "pools": {SINGLE: pool.view(images_each=each, least_images=each)}}


SPACE = Space(
    name="joint_against_single",
    question="Is the joint search's best composition better than the best single system?",
    axes={"composition": Choice("joint", SINGLE)},
    composition=composition,
    search="grid",
    seeds=(2, 3, 4),
    reports=1,
)
