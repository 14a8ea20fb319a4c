"""Does a recognizer learn more from images near their person's centre, or far from it?

This is CemiFace's question. Windows of about 40 % of the images slide over one pool of IDiff-Face,
from the images least like their person's centre to those most like it. Every trial has the same
numbers of people and images.
"""

from factory.search import Choice, Pool, Space

WIDE = Pool(
    "jobs/recipes/desk/generate/idiff_face.yaml",
    "identities.count=400",
    "identities.images_each=16",
)
TEACHER = {
    "location": "package:weights/teacher/recognizer.safetensors",
    "sha256": "9ddfd824e9fbd165fa36f30fdcd1c7840be2bffac1993f26c880fc04fd69d722",
    "licence": "Apache-2.0",
}


def composition(point):
    """Return the composition of a point."""
    band = point["band"]
    return {
        "images": 1200,
        "recognizer": TEACHER,
        "pools": {"idiff_face": WIDE.view(identities=200, least_images=3, centre_band=band)},
    }


SPACE = Space(
    name="similarity_bands",
    question="Does a recognizer learn more from images near their person's centre, or far from it?",
    axes={
        "band": Choice(
            [-1.0, 0.738],
            [0.65, 0.753],
            [0.691, 0.767],
            [0.711, 0.778],
            [0.728, 0.792],
            [0.743, 0.81],
            [0.757, 0.833],
            [0.77, 1.0],
        )
    },
    composition=composition,
    search="grid",
    reports=1,
)
