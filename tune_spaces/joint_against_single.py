"""Is the best composition that `joint` found better than the best single systems, at 1,200 images?

`BEST` is the best point of `tune_spaces/joint.py --samples 40`, where seed 1 chose it among forty.
The single systems are the two best of `system_mix`. Other seeds judge here, so that the luck of
that choice does not count.
"""

from factory.search import Choice, Pool, Space
from factory.search.space import load_space

BEST = {
    "share_idiff_face": 0.02,
    "share_dcface": 0.03,
    "share_cemiface": 0.87,
    "share_id3": 0.53,
    "share_studio_plain": 0.86,
    "images_each": 8,
    "m": [0.5, 0.84],
    "idiff_face_below": 0.76,
}


def composition(point):
    """Return the composition of a point."""
    system = point["composition"]
    if system == "joint":
        return load_space("tune_spaces/joint.py").composition(BEST)
    each = BEST["images_each"]
    pool = Pool(f"jobs/recipes/desk/generate/{system}.yaml")
    return {"images": 1200, "pools": {system: pool.view(images_each=each, least_images=each)}}


SPACE = Space(
    name="joint_against_single",
    question="Is the joint search's best composition better than the best single systems?",
    axes={"composition": Choice("joint", "idiff_face", "cemiface")},
    composition=composition,
    search="grid",
    seeds=(2, 3, 4, 5, 6),
    reports=1,
)
