"""Style banks: pictures drawn from a dataset or from the studio."""

from pathlib import Path

import numpy as np
from faces import make_pool

from factory.datasets.images import ImageBank, contents_digest
from factory.datasets.store import Store
from factory.recipe import NamedDataset
from factory.seeding import generator
from factory.systems.styles import DatasetStyles, StudioStyles

SIZE = 32


def test_styles_of_a_dataset_cover_it(tmp_path: Path):
    url = make_pool(tmp_path / "faces", 5, 3, size=SIZE, per=2)
    named = NamedDataset(url=url, digest=contents_digest(Store(url)))
    styles = DatasetStyles(ImageBank(named, SIZE, "options.styles.dataset"))
    drawn = [styles.draw(generator(seed)) for seed in range(200)]
    assert {style.number for style in drawn} == set(range(15))
    assert styles.draw(generator(3)) == drawn[3]
    assert styles.image(drawn[0]).shape == (SIZE, SIZE, 3)
    assert styles.key(drawn[0]) == styles.images.key(drawn[0].number)
    assert styles.truth(drawn[0]) == {}


def test_styles_of_the_studio_are_pictures_with_their_truth():
    styles = StudioStyles(3, SIZE)
    style = styles.draw(generator(1))
    assert style == styles.draw(generator(1)) != styles.draw(generator(2))
    image = styles.image(style)
    assert image.shape == (SIZE, SIZE, 3) and image.std() > 10
    np.testing.assert_array_equal(image, styles.image(style))
    assert {"yaw", "gender", "age"} <= styles.truth(style).keys()
    assert styles.key(style) != styles.key(styles.draw(generator(2)))
