"""Find where the gap to real faces arises: in autoencoder, teacher and denoiser, or contexts.

    python -m benchmarks.where_the_gap_is --out runs/gap --seeds 3 \
        --json docs/results/where_the_gap_is.json

One recognizer is trained on the studio's images, and on the same images made again in ways that
lose more and more: through the autoencoder; from the studio's own numbers of the person, where
--truth names a denoiser that has learned them (benchmarks.truth); from each image's own embedding;
from its person's centre, as it is or spread as real embeddings are. The last row has people of the
system's own. To resume, run the same command again: finished datasets and trainings are kept.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.truth import truths
from factory import tracking
from factory.commands.chain import BENCHMARKS, JUDGE, RECIPES, Chain
from factory.datasets.images import ImageBank, contents_digest
from factory.datasets.provenance import sha256_file
from factory.datasets.store import Store
from factory.diffusion.autoencoder import to_images, to_pixels
from factory.evaluation.benchmarks import benchmark_folder
from factory.evaluation.gap import gap, over_seeds
from factory.recipe import GenerateRecipe, NamedDataset, Screens, load
from factory.systems import create
from factory.systems.base import Conditions, Position
from factory.systems.contexts import perturb, unit
from factory.systems.idiff_face import IDiffFace

PEOPLE, IMAGES_EACH = 200, 10
MEASURED = ("eer", "spread", "uniqueness", "genuine_mean")
TRUTH = "truth"
STUDIO, OWN_PEOPLE = "studio", "as_shipped"
ROWS = {
    "autoencoder": "the studio's images, encoded and decoded",
    "truth": "made again, each from the numbers that make its person",
    "own": "made again, each from its own embedding",
    "centre": "made again, each from its person's centre",
    "isotropic": "made again from the centre, turned away in a random direction as far as the "
    "image's embedding is",
    "borrowed": "made again from the centre plus what another person's image differs from its own "
    "centre",
}

Contexts = Callable[[np.ndarray, np.ndarray], np.ndarray]


def centres(embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the centre of each image's person, float32 [N, D], unit vectors.

    Args:
        embeddings: float32 [N, D], unit vectors.
        labels: int64 [N].
    """
    found = np.empty_like(embeddings)
    for label in np.unique(labels):
        rows = labels == label
        found[rows] = embeddings[rows].mean(axis=0)
    return unit(found)


def isotropic(embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Turn each centre in a random direction, as far away as the image's embedding is.

    Returns:
        float32 [N, D], unit vectors with the cosines to the centres that `embeddings` have.
    """
    middle = centres(embeddings, labels)
    cosines = (middle * embeddings).sum(axis=1)
    return perturb(middle, cosines, range(len(labels))).astype(np.float32)


def borrowed(embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Add to each centre what the image half the dataset away differs from its own centre.

    Returns:
        float32 [N, D], unit vectors: what poses and light do to one person's embedding is done to
        another's.
    """
    middle = centres(embeddings, labels)
    differs = embeddings - middle
    return unit(middle + np.roll(differs, len(labels) // 2, axis=0))


CONTEXTS: dict[str, Contexts] = {
    "own": lambda embeddings, labels: embeddings,
    "centre": centres,
    "isotropic": isotropic,
    "borrowed": borrowed,
}


class Again:
    """Makes a dataset's images again with a denoiser that takes contexts as they are."""

    def __init__(self, recipe: GenerateRecipe, dataset: Path) -> None:
        """Load the recipe's weights, and embed the dataset's images."""
        made = create(recipe)
        assert isinstance(made, IDiffFace)
        self.system, store = made, Store(dataset)
        self.system.load()
        named = NamedDataset(url=str(dataset), digest=contents_digest(store))
        self.bank = ImageBank(named, recipe.image.size, "the studio's dataset")
        self.images = self.bank.images(range(len(self.bank)))

    @cached_property
    def embeddings(self) -> np.ndarray:
        """The images' embeddings under the recipe's teacher, float32 [N, D], unit vectors."""
        return self.system.embedded(self.images)

    def made(self, row: str) -> Iterator[np.ndarray]:
        """Yield a row's images in the dataset's order, in batches uint8 [B, S, S, 3]."""
        assert self.system.sampler is not None
        size, labels = self.system.sampler.batch_size, self.bank.labels
        wanted = None
        if row == TRUTH:
            wanted = self.system.contexts[labels]
        elif row in CONTEXTS:
            wanted = CONTEXTS[row](self.embeddings, labels)
        for start in range(0, len(labels), size):
            part = slice(start, start + size)
            if wanted is None:
                yield self.autoencoded(self.images[part])
                continue
            places = [Position(int(label), start + n, 0) for n, label in enumerate(labels[part])]
            given = Conditions(wanted[part], np.ones(len(places), np.float32))
            yield self.system.sample(given, places).images

    @torch.no_grad()
    def autoencoded(self, images: np.ndarray) -> np.ndarray:
        """Encode and decode images, uint8 [B, S, S, 3]."""
        autoencoder = self.system.autoencoder
        assert autoencoder is not None
        return to_images(
            autoencoder.decode(autoencoder.encode(to_pixels(torch.tensor(images))))
        ).numpy()

    def write(self, row: str, folder: Path) -> None:
        """Write a row's images as FOLDER/PERSON/NUMBER.png."""
        number = 0
        for images in self.made(row):
            for image in images:
                person = folder / f"{self.bank.labels[number]:05d}"
                person.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(person / f"{number:06d}.png")
                number += 1


def told(people: int, denoiser: str, folder: Path) -> tuple[str, ...]:
    """Return what a recipe has to say to sample studio people from their truth.

    Args:
        people: the first so many of the studio's `train` set.
        denoiser: file of a denoiser that `benchmarks.truth` trained.
        folder: gets the file of their contexts.
    """
    file = folder / "truths.pt"
    found = truths(np.arange(people))
    torch.save({f"{n:05d}": torch.from_numpy(vector) for n, vector in enumerate(found)}, file)
    return (
        "identities.source=file",
        f"options.contexts.url={file}",
        f"options.contexts.digest={sha256_file(file)[:16]}",
        f"weights.denoiser.location={denoiser}",
        "weights.denoiser.sha256=''",
    )


def datasets(
    chain: Chain,
    recipe: str,
    sets: Sequence[str],
    rows: Sequence[str],
    people: int,
    images_each: int,
    truth: str = "",
) -> dict[str, Path]:
    """Make the datasets of the rows and return their folders, the studio's first.

    Args:
        chain: runs the jobs.
        recipe: the system's generate recipe.
        sets: overrides of its fields.
        rows: names of `ROWS`, and `OWN_PEOPLE`.
        people: number of people of each dataset.
        images_each: images of each person.
        truth: file of a denoiser that has learned the truth, for its row.
    """
    studio = chain.run / STUDIO
    size = (f"identities.count={people}", f"identities.images_each={images_each}")
    chain.step(STUDIO, "generate", RECIPES / "generate/studio.yaml", "--out", studio, sets=size)
    found = {STUDIO: studio}
    again: dict[tuple[str, ...], Again] = {}
    for row in [row for row in ROWS if row in rows]:
        found[row], folder = chain.run / row, chain.run / "images" / row
        if not (found[row] / "manifest.json").is_file():
            own = told(people, truth, chain.run) if row == TRUTH else ()
            if own not in again:
                stated = (*sets, *size, "sampler.dtype=float32", *own)
                loaded = load(recipe, stated, kind="generate")
                assert isinstance(loaded, GenerateRecipe)
                if own:  # the truth is no embedding of the teacher's
                    weights = {n: w for n, w in loaded.weights.items() if n != "teacher"}
                    loaded = loaded.model_copy(update={"weights": weights, "screens": Screens()})
                again[own] = Again(loaded, studio)
            again[own].write(row, folder)
        chain.step(row, "prepare", folder, "--out", found[row], "--licence", "Apache-2.0")
    if OWN_PEOPLE in rows:
        found[OWN_PEOPLE] = chain.run / OWN_PEOPLE
        chain.step(OWN_PEOPLE, "generate", recipe, "--out", found[OWN_PEOPLE], sets=(*sets, *size))
    return found


def measure(chain: Chain, found: dict[str, Path]) -> dict[str, Any]:
    """Train on every dataset, measure it under the judge, and return the rows."""
    rows: dict[str, Any] = {}
    for row, dataset in found.items():
        judged = chain.measure(row, dataset, "judge", JUDGE)
        trained = chain.train(row, dataset)
        accuracy = over_seeds([100 * value for value in trained["average"]])
        real = rows.get(STUDIO, {}).get("trained", trained)
        behind = gap(real["average"], trained["average"])
        rows[row] = {
            "is": ROWS.get(row, row),
            **{name: judged[name] for name in MEASURED},
            "accuracy": accuracy.mean,
            "accuracy_sd": accuracy.sd,
            "gap": behind.absolute,
            "gap_error": behind.absolute_error,
            "trained": trained,
        }
    return rows


def main() -> None:
    """Make the datasets, train on each, and print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the datasets and trainings")
    add("--recipe", default="desk/generate/idiff_face_full.yaml", help="an idiff_face recipe")
    add("--set", dest="sets", action="append", default=[], help="override a field of the recipe")
    add("--people", type=int, default=PEOPLE, help="people of each dataset")
    add("--images-each", type=int, default=IMAGES_EACH, help="images of each person")
    every = (*ROWS, OWN_PEOPLE)
    add("--rows", nargs="+", choices=every, help="default: all, truth only with --truth")
    add("--truth", default="", help="a denoiser that benchmarks.truth trained")
    add("--seeds", type=int, default=3, help="trainings of each row")
    add("--benchmarks", default=BENCHMARKS, help="folder of .bin files (default: the studio's)")
    add("--json", help="write the rows to this file")
    add("--tracking-uri", default="", help="MLflow server, as for the jobs")
    given = parser.parse_args()
    import ray

    from factory.cluster.connect import connect

    given.out.mkdir(parents=True, exist_ok=True)
    connect("")
    address, uri = ray.get_runtime_context().gcs_address, tracking.resolve(given.tracking_uri)
    seeds = range(1, given.seeds + 1)
    chain = Chain(given.out, address, uri, seeds, benchmark_folder(given.benchmarks))
    asked = given.rows or [row for row in every if given.truth or row != TRUTH]
    if TRUTH in asked and not given.truth:
        parser.error("--rows truth needs --truth FILE")
    size = (given.people, given.images_each)
    rows = measure(chain, datasets(chain, given.recipe, given.sets, asked, *size, given.truth))
    if given.json:
        Path(given.json).write_text(json.dumps(rows, indent=1) + "\n")
    for name, row in rows.items():
        error = "" if row["gap_error"] is None else f" +- {row['gap_error']:.2f}"
        print(f"{name}: accuracy {row['accuracy']:.2f}, gap {row['gap']:.2f}{error}, EER "
              f"{100 * row['eer']:.2f} %, spread {row['spread']:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
