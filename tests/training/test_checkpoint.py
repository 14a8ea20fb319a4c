import pytest
import torch

from factory.datasets.store import Store
from factory.recipe import FaultError
from factory.training import checkpoint


def test_what_is_saved_is_loaded(tmp_path):
    store = Store(tmp_path)
    state = {"model": {"w": torch.arange(3.0)}, "position": 7, "curve": [{"loss": 0.5}], "n": None}
    checkpoint.save(store, 12, {"state.pt": state, "other.pt": {"n": 1}})
    assert checkpoint.latest(store) == 12
    parts = checkpoint.load(store, 12)
    assert parts["other.pt"] == {"n": 1}
    loaded = parts["state.pt"]
    assert torch.equal(loaded["model"]["w"], torch.arange(3.0))
    assert {k: loaded[k] for k in ("position", "curve", "n")} == {
        "position": 7,
        "curve": [{"loss": 0.5}],
        "n": None,
    }


def test_only_a_committed_checkpoint_exists(tmp_path):
    store = Store(tmp_path / "out")
    folder = tmp_path / "part"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"1")
    assert checkpoint.latest(store) is None
    files = checkpoint.upload(store, 3, folder)
    assert checkpoint.latest(store) is None
    checkpoint.commit(store, 3, files)
    assert checkpoint.latest(store) == 3
    with checkpoint.fetch(store, 3) as fetched:
        assert (fetched / "a.bin").read_bytes() == b"1"


def test_newest_are_kept_and_remains_of_older_removed(tmp_path):
    store = Store(tmp_path)
    store.write("checkpoints/step-000000001/half.bin", b"cut off")
    store.write("checkpoints/step-000000099/half.bin", b"being written")
    for step in (2, 4, 6, 8):
        checkpoint.save(store, step, {"state.pt": {"step": step}}, keep=2)
    assert checkpoint.steps(store) == [6, 8]
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {"step-000000006", "step-000000008", "step-000000099"}


def test_damage_is_named(tmp_path):
    store = Store(tmp_path)
    checkpoint.save(store, 5, {"state.pt": {"w": torch.zeros(100)}})
    path = tmp_path / "checkpoints" / "step-000000005" / "state.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(FaultError, match=r"step-000000005: state\.pt is damaged"):
        checkpoint.load(store, 5)
    path.unlink()
    with pytest.raises(FaultError, match=r"state\.pt is missing"):
        checkpoint.load(store, 5)
