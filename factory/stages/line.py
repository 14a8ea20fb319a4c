"""A line: some of the stages in order, as one worker runs them, whatever started the worker."""

from dataclasses import dataclass
from typing import Any

from factory import hardware, identities
from factory.provenance import check_versions, checked_sha256
from factory.recipe import GenerateRecipe, InputError, bank_digest, parse, stated_precision
from factory.recognition.recognizers import load_recognizer
from factory.shards.manifest import ShardManifest
from factory.shards.store import Store
from factory.stages.encode import Commit
from factory.stages.identities import Identities
from factory.stages.render import Render
from factory.stages.screen import Screen, known_faces
from factory.stages.styles import Styles
from factory.stages.work import ShardWork
from factory.systems import create


@dataclass(frozen=True)
class Assignment:
    """All that a worker needs to know; small enough to send to every one of them.

    Attributes:
        recipe: the generate recipe as JSON-able values.
        store: the dataset's folder.
        content_digest: what every sidecar and manifest states.
        versions: of the libraries that compute pixels, where the run was started.
    """

    recipe: dict[str, Any]
    store: Store
    content_digest: str
    versions: dict[str, str]


class Line:
    """The named stages, loaded once and run in order on one shard after another.

    Names are `identities`, `styles:N` (N is the attempt), `render`, `screen` and `commit`.
    """

    def __init__(self, assignment: Assignment, stages: tuple[str, ...]) -> None:
        """Load the system, the teacher and the bank, each only where a stage needs it.

        Raises:
            InputError: weights, datasets or libraries here are not those of the assignment.
        """
        versions = check_versions(assignment.versions)
        recipe = parse(assignment.recipe)
        assert isinstance(recipe, GenerateRecipe)
        pool, kinds = recipe.pool, {stage.partition(":")[0] for stage in stages}
        gpu = (pool.num_gpus if "render" in kinds else pool.screen_num_gpus) > 0
        hardware.set_up(pool.threads, gpu, stated_precision(recipe) if "render" in kinds else "")
        system = create(recipe)
        if "render" in kinds:
            system.load()
        bank = teacher = faces = None
        if kinds & {"identities", "styles"} and system.banked:
            bank = identities.load_bank(assignment.store, bank_digest(recipe))
            if bank is not None:
                system.meet(bank.contexts)
        if "screen" in kinds and "teacher" in recipe.weights:
            device = "cuda" if gpu else "cpu"
            checked_sha256("teacher", recipe.weights["teacher"])
            teacher = load_recognizer(recipe.weights["teacher"].location, device=device)
            faces = known_faces(recipe)
            if faces is not None and faces.unit.shape[1] != teacher.dimension:
                raise InputError(
                    "recipe field screens.real_lookalike.embeddings: dimension "
                    f"{faces.unit.shape[1]}, accepted is the teacher's {teacher.dimension}"
                )
        self.commit = Commit(recipe, assignment.store, assignment.content_digest, versions)
        made = {
            "identities": lambda _: Identities(system, bank),
            "styles": lambda attempt: Styles(system, int(attempt)),
            "render": lambda _: Render(system),
            "screen": lambda _: Screen(system, teacher, faces),
            "commit": lambda _: self.commit,
        }
        self.stages = [made[kind](n) for kind, _, n in (s.partition(":") for s in stages)]

    def __call__(self, work: ShardWork) -> ShardWork | ShardManifest:
        """Take a shard through the stages; returns its manifest where the last one commits."""
        for stage in self.stages:
            work = stage(work)
        return self.commit.manifest if self.stages[-1] is self.commit else work
