"""Systems outside the package, which an environment variable names."""

from pathlib import Path

import pytest

from factory import systems
from factory.recipe import InputError

CODE = """
from factory.systems.studio import Studio


class Masks(Studio):
    name = "masks"


SYSTEM = Masks
"""


def test_a_module_is_a_system_by_its_last_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "of_others"
    folder.mkdir()
    (folder / "masks.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    own = systems.names()
    monkeypatch.setenv(systems.ELSEWHERE, "of_others.masks")
    assert systems.names() == sorted([*own, "masks"])
    assert systems.system_class("masks").name == "masks"
    with pytest.raises(InputError, match=r"system: 'mask'; accepted: .*idiff_face, masks, studio"):
        systems.system_class("mask")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("of_nobody", r"FACTORY_SYSTEMS: 'of_nobody'; accepted are modules that can be imported"),
        ("of_nobody.masks", r"FACTORY_SYSTEMS: 'of_nobody\.masks'; accepted are modules"),
        ("json,of_nobody", r"FACTORY_SYSTEMS: 'of_nobody'"),
        ("..masks", r"FACTORY_SYSTEMS: '\.\.masks'"),
        ("my.studio", r"FACTORY_SYSTEMS: my\.studio; there is a system studio"),
    ],
)
def test_a_module_that_is_none_is_one_error(
    said: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(systems.ELSEWHERE, said)
    with pytest.raises(InputError, match=words):
        systems.system_class("studio")


def test_a_module_without_a_system_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(systems.ELSEWHERE, "json")
    with pytest.raises(InputError, match="FACTORY_SYSTEMS: json has no SYSTEM"):
        systems.system_class("json")
