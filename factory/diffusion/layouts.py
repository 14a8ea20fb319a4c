"""The tensors of a checkpoint of others, taken one by one under the names they have there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from factory.recipe import InputError

SHOWN = 3  # names that an error gives as examples


@dataclass(frozen=True)
class PublishedDenoiser:
    """A denoiser of others, as a file of ours would have it.

    Attributes:
        config: what a file of ours states in its metadata; of a U-Net alone, `model.unet` has no
            size, which no shape tells.
        state: the tensors under our names.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]


class Layout:
    """Tensors by the names of others; what is missing, or left over, is one error.

    Attributes:
        found: float32 or integer tensors by name.
        where: begins errors, such as "recipe field weights.denoiser.location: FILE".
        accepted: ends them.
    """

    def __init__(self, found: Mapping[str, Tensor], where: str, accepted: str) -> None:
        """Keep the tensors; none is taken yet."""
        self.found, self.where, self.accepted = found, where, accepted
        self.taken: set[str] = set()

    def within(self, prefix: str) -> "Layout":
        """Return the tensors whose names begin so, under what follows."""
        inside = {
            name.removeprefix(prefix): value
            for name, value in self.found.items()
            if name.startswith(prefix)
        }
        return Layout(inside, f"{self.where}: {prefix}*" if prefix else self.where, self.accepted)

    def has(self, prefix: str) -> bool:
        """Tell whether the name of any tensor begins so."""
        return any(name.startswith(prefix) for name in self.found)

    def take(self, name: str) -> Tensor:
        """Return a tensor; InputError where there is none of this name."""
        if name not in self.found:
            names = ", ".join(list(self.found)[:SHOWN]) or "nothing"
            raise InputError(f"{self.where} lacks {name} (it has {names} ...); {self.accepted}")
        self.taken.add(name)
        return self.found[name]

    def layer(self, ours: str, theirs: str, linear: bool = False) -> dict[str, Tensor]:
        """Return weight and bias of a layer under our name; a linear one without axes of 1."""
        weight = self.take(f"{theirs}.weight")
        weight = weight.flatten(1) if linear else weight
        return {f"{ours}.weight": weight, f"{ours}.bias": self.take(f"{theirs}.bias")}

    def layers(
        self, ours: str, theirs: str, names: Mapping[str, str], linear: bool = False
    ) -> dict[str, Tensor]:
        """Return the layers of a block; `names` has our name of each and theirs."""
        made: dict[str, Tensor] = {}
        for mine, other in names.items():
            made |= self.layer(f"{ours}.{mine}", f"{theirs}.{other}", linear)
        return made

    def finish(self) -> None:
        """Refuse tensors that were not taken: the file is of another network than this one."""
        left = [name for name in self.found if name not in self.taken]
        if left:
            shown = ", ".join(left[:SHOWN])
            raise InputError(
                f"{self.where} has tensors without a place here ({shown}{' ...' * (len(left) > 3)}"
                f"); {self.accepted}"
            )
