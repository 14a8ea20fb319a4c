"""Embedding by a pool of actors: the numbers of one process, whatever the number of actors."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from faces import make_pool
from tiny import save_frozen

from factory.cluster.workers import column
from factory.commands import measure
from factory.datasets.manifest import TAR, load_manifest, shard_file
from factory.datasets.store import Store
from factory.evaluation import dataset, embedding
from factory.evaluation.dataset import embed_dataset
from factory.evaluation.embedding import EmbedActor, embed_by_pool, pieces
from factory.recipe import FaultError, InputError
from factory.recognition.recognizers import load_recognizer


@pytest.mark.parametrize("row", [1, 2, 3, 5, 7, 11, 23, 24])
def test_pieces_hold_every_sample_once(
    made_dataset: Callable[..., Store], monkeypatch: pytest.MonkeyPatch, row: int
) -> None:
    monkeypatch.setattr(embedding, "ROW", row)
    store = made_dataset(shard={"identities": 2})
    whole = [sample.key for sample in dataset.samples(store)]
    kept = {entry.name: entry.kept for entry in load_manifest(store).shards}
    found: list[str] = []
    for number, piece in enumerate(pieces(store)):
        of = [s.key for name in piece.shards for s in dataset.shard_samples(store, name)]
        found += of[piece.skip : piece.skip + piece.take]
        assert piece.number == number and 0 < piece.take <= row
        assert piece.ends == (piece.skip + piece.take == sum(kept[n] for n in piece.shards))
    assert found == whole and len(whole) == 23


@pytest.mark.ray
def test_a_pool_embeds_as_one_process(
    ray_cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = str(save_frozen(tmp_path)["teacher"])
    recognizer = load_recognizer(teacher)
    store = Store(make_pool(tmp_path / "people", 5, 4, size=recognizer.size))
    monkeypatch.setattr(embedding, "ROW", 6)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = embed_dataset(store, recognizer, batch_size=6)  # as long as the actors' pieces
    torch.set_num_threads(threads)
    pooled = embed_by_pool(store, teacher, recognizer.sha256, 2)
    np.testing.assert_array_equal(pooled.unit, alone.unit)
    np.testing.assert_array_equal(pooled.labels, alone.labels)
    assert pooled.keys == alone.keys and len(alone.keys) == 20
    # A part of the dataset is embedded by the command itself; tasks search it all the same.
    found = []
    for tasks in ("0", "2"):
        to, part = tmp_path / f"{tasks}.json", ("--identities", "3", "--tasks", tasks)
        words = ["measure", store.url, "--recognizer", teacher, *part, "--json", str(to)]
        monkeypatch.setattr("sys.argv", [*words, "--tracking-uri", f"sqlite:///{tmp_path}/m.db"])
        with pytest.raises(SystemExit) as ended:
            measure.main()
        assert ended.value.code == 0
        found.append(json.loads(to.read_text()))
    assert found[0] == found[1] and found[0]["images"] == 12


def test_an_actor_refuses_other_weights_and_damaged_shards(tmp_path: Path) -> None:
    teacher = str(save_frozen(tmp_path)["teacher"])
    recognizer = load_recognizer(teacher)
    store = Store(make_pool(tmp_path / "people", 5, 4, size=recognizer.size))
    with pytest.raises(InputError, match=r"--recognizer .* accepted is 0000"):
        EmbedActor((store, teacher, "0" * 64, False))
    actor, (piece,) = EmbedActor((store, teacher, recognizer.sha256, False)), pieces(store)
    assert len(actor({"piece": column(piece)})["made"][0].keys) == 20
    name = shard_file(load_manifest(store).shards[-1].name, TAR)
    store.write(name, store.read(name)[:-1] + b"\1")
    with pytest.raises(FaultError, match="verify"):
        actor({"piece": column(piece)})
