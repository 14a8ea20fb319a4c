"""The plan: every shard of a dataset, as a pure function of its recipe.

Nothing here reads or writes files. A shard covers a range of identities times a range of slots. Its
name states both, so that a dataset that grows, by identities or by images each, only gets new
shards.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from factory.nodes import Group, place, reservations, within
from factory.recipe import GenerateRecipe

TAR_MEMBER_BYTES = 3 * 512  # of the three tar headers of a sample
SIDECAR_BYTES = 2 * 512  # label and JSON sidecar, padded to tar blocks


@dataclass(frozen=True, order=True)
class Shard:
    """A unit of work, retry and commit: identities [start, stop) x slots [start, stop)."""

    identity_start: int
    identity_stop: int
    slot_start: int
    slot_stop: int

    @property
    def name(self) -> str:
        """Return the fixed name of the shard, the stem of its files."""
        identities = f"i{self.identity_start:07d}-{self.identity_stop:07d}"
        return f"{identities}-s{self.slot_start:04d}-{self.slot_stop:04d}"

    @property
    def samples(self) -> int:
        """Return how many slots the shard has."""
        return (self.identity_stop - self.identity_start) * (self.slot_stop - self.slot_start)

    @property
    def slots(self) -> Iterator[tuple[int, int]]:
        """Yield (identity, slot) in key order."""
        for identity in range(self.identity_start, self.identity_stop):
            for slot in range(self.slot_start, self.slot_stop):
                yield identity, slot


@dataclass(frozen=True, order=True)
class ListedShard(Shard):
    """A shard of a dataset whose identities have different numbers of images.

    All its images lie in its ranges. `planned` says how many there are; they need not fill the
    ranges.
    """

    planned: int

    @property
    def samples(self) -> int:
        """Return how many images are planned."""
        return self.planned


@dataclass(frozen=True, order=True)
class Slice:
    """A shard of a dataset that has an order instead of slots: positions [start, stop)."""

    start: int
    stop: int

    @property
    def name(self) -> str:
        """Return the fixed name of the shard, the stem of its files."""
        return f"p{self.start:09d}-{self.stop:09d}"

    @property
    def samples(self) -> int:
        """Return how many positions the shard has."""
        return self.stop - self.start


def slices(images: int, each: int) -> Iterator[Slice]:
    """Yield the shards of `images` positions, `each` positions a shard."""
    for start in range(0, images, each):
        yield Slice(start, min(start + each, images))


def position_key(position: int) -> str:
    """Return the key of a sample that has a position; matches [A-Za-z0-9_-]+."""
    return f"{position:09d}"


def sample_key(identity: int, slot: int) -> str:
    """Return the key of a sample, unique in its dataset; matches [A-Za-z0-9_-]+."""
    return f"{identity:07d}_{slot:04d}"


Extent = tuple[int, int]


def shards(recipe: GenerateRecipe, grown: tuple[Extent, ...] = ()) -> Iterator[Shard]:
    """Yield every shard of the dataset.

    Args:
        recipe: what to make.
        grown: the extents (identities, images each) the dataset had before it was extended, in
            order; each extension only adds the rectangles the one before did not cover.
    """
    covered: Extent = (0, 0)
    slots = recipe.shard.slots or (grown[0][1] if grown else recipe.identities.images_each)
    for extent in (*grown, (recipe.identities.count, recipe.identities.images_each)):
        count, images = extent
        yield from _tiles(0, covered[0], covered[1], images, recipe.shard.identities, slots)
        yield from _tiles(covered[0], count, 0, images, recipe.shard.identities, slots)
        covered = extent


def _tiles(
    first: int, stop: int, slot: int, slot_stop: int, identities: int, slots: int
) -> Iterator[Shard]:
    for start in range(first, stop, identities):
        for slot_start in range(slot, slot_stop, slots):
            yield Shard(
                start, min(start + identities, stop), slot_start, min(slot_start + slots, slot_stop)
            )


@dataclass(frozen=True)
class Totals:
    """Counts, bytes and cost of a planned dataset."""

    shards: int
    identities: int
    images: int
    bytes: int
    actor_hours: tuple[float, float]
    source: str


def totals(recipe: GenerateRecipe) -> Totals:
    """Return counts, bytes and actor-hours (low, high) of the planned dataset."""
    count, images_each = recipe.identities.count, recipe.identities.images_each
    slots = recipe.shard.slots or images_each
    images = count * images_each
    low, high = recipe.cost.seconds_per_image
    return Totals(
        shards=-(-count // recipe.shard.identities) * -(-images_each // slots),
        identities=count,
        images=images,
        bytes=images * (recipe.cost.bytes_per_image + TAR_MEMBER_BYTES + SIDECAR_BYTES),
        actor_hours=(images * low / 3600, images * high / 3600),
        source=recipe.cost.source,
    )


def describe(
    recipe: GenerateRecipe, groups: Sequence[Group] = (), most: int | None = None
) -> dict[str, str]:
    """Return what a dataset will be and cost, as names and texts for a person to read.

    Args:
        recipe: what to make.
        groups: the cluster's, if they are known.
        most: how many workers of all groups together it allows; None for all.

    Raises:
        InputError: the groups cannot hold what the recipe reserves.
    """
    planned, size = totals(recipe), recipe.workers.max
    first, last = next(shards(recipe)), _last(recipe)
    low, high = planned.actor_hours
    return {
        "recipe": f"{recipe.name} (system {recipe.system}, {recipe.image.size} px, "
        f"licence {recipe.licence})",
        "shards": f"{planned.shards:,}: {first.name} to {last.name}",
        "identities": f"{planned.identities:,} x {recipe.identities.images_each:,} images",
        "images": f"{planned.images:,}",
        "bytes": human(planned.bytes),
        "actor-hours": f"{hours(low)} to {hours(high)}",
        "wall time": f"{hours(low / size)} to {hours(high / size)} with {size} actors "
        "(workers.max), start-up aside",
        "reserves": reserves(recipe),
        "together": together(recipe),
        **_nodes(recipe, groups, most),
        **_gpu_hours(recipe, planned),
        "source": planned.source,
    }


def reserves(recipe: GenerateRecipe) -> str:
    """Return in words what the actors of a recipe reserve at their most."""
    workers = recipe.workers
    least = f"{workers.least} to " if workers.least < workers.max else ""
    gpus = f" + {workers.num_gpus:g} GPU" if workers.num_gpus else ""
    makers = f"{least}{workers.max} makers x {workers.num_cpus:g} CPU{gpus}"
    if not workers.committers:
        return makers
    return f"{makers}, {workers.committers} committers x {workers.committer_num_cpus:g} CPU"


def together(recipe: GenerateRecipe) -> str:
    """Return in words what that is in all."""
    pools = reservations(recipe)
    cpus = sum(pool.size * pool.num_cpus for pool in pools)
    gpus = sum(pool.size * pool.num_gpus for pool in pools)
    return f"{cpus:g} CPU" + (f" + {gpus:g} GPU" if gpus else "")


def _nodes(recipe: GenerateRecipe, groups: Sequence[Group], most: int | None) -> dict[str, str]:
    """Return how many nodes of each group that takes; nothing if the groups are not known."""
    if not groups:
        return {}
    used = place(reservations(recipe), groups, most)
    counts = {group.name: group.count for group in within(groups, most)}
    words = [f"{name} {count} of {counts[name]}" for name, count in used.items() if count]
    return {"nodes": ", ".join(words)}


def _gpu_hours(recipe: GenerateRecipe, planned: Totals) -> dict[str, str]:
    low, high = (recipe.workers.num_gpus * actor for actor in planned.actor_hours)
    return {"GPU-hours": f"{hours(low)} to {hours(high)}"} if high else {}


def _last(recipe: GenerateRecipe) -> Shard:
    """Return the last shard of a dataset that has not grown, without listing the others."""
    count, images = recipe.identities.count, recipe.identities.images_each
    each, slots = recipe.shard.identities, recipe.shard.slots or images
    start, slot = (count - 1) // each * each, (images - 1) // slots * slots
    return Shard(start, count, slot, images)


def human(size: int) -> str:
    """Write a number of bytes with three digits and a decimal unit."""
    value, units = float(size), ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


def hours(value: float) -> str:
    """Write hours; or minutes or seconds if the time is shorter than an hour or a minute."""
    if value >= 1:
        return f"{value:,.1f} h"
    return f"{value * 60:.1f} min" if value >= 1 / 60 else f"{value * 3600:.1f} s"
