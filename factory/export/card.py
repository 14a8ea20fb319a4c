"""The dataset card of an export: its content, how it was made, and its intended use.

It is written from manifests alone, so that it states only recorded facts. The front matter is that
of the Hugging Face Hub.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import yaml

from factory.datasets.manifest import DatasetManifest
from factory.datasets.provenance import DIGITAL_SOURCE_TYPE, Model
from factory.export.about import About
from factory.export.kits import GPUS, NETWORKS, TRAINER_SIZE, validation_name
from factory.export.source import Source

HUB_LICENCES = {
    *("cc0-1.0", "mit", "bsd-2-clause", "bsd-3-clause", "apache-2.0", "cc-by-4.0", "mpl-2.0"),
    *("lgpl-3.0", "gpl-3.0", "agpl-3.0", "cc-by-sa-4.0", "openrail", "cc-by-nc-4.0"),
    *("cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "unknown"),
}
SPDX = "https://spdx.org/licenses/"
SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
SMALLEST = 1000
LARGEST_ONE_HOT = 1000  # for more identities, a one-hot label is too wide to be useful

SYNTHETIC = "It needs no photographs of people who never agreed to it."
PHOTOGRAPHS = "Some images are photographs of people: they carry those people's rights."
INTENDED = """\
Training and studying face recognition. {what}
It is not meant for identifying anybody, for surveillance, for deciding about people, or for passing
the faces off as photographs. What a recognizer trained on it is worth on real faces has to be
measured on real faces, over all groups of people it will meet."""

LOOKALIKE = """\
The faces are computed and no person is meant. A generated face can resemble a living person by
chance, as two strangers do; and a generator trained on photographs can give parts of them back.
The screens above say what was done against it; no screen proves that a resemblance is absent."""


def card(about: About, measured: Sequence[dict[str, Any]]) -> str:
    """Return README.md of an export.

    Args:
        about: the export.
        measured: results of the command measure (--json); their numbers are listed.
    """
    intended = INTENDED.format(what=SYNTHETIC if is_synthetic(about.source) else PHOTOGRAPHS)
    parts = [
        front_matter(about),
        f"# {about.name}\n",
        _summary(about),
        _contents(about),
        "## Use\n\n" + use(about),
        _making(about),
        _metrics(measured),
        f"## Intended use\n\n{intended}\n",
        f"## Lookalikes\n\n{LOOKALIKE}\n" if is_synthetic(about.source) else "",
        _licence(about),
        _recipe(about),
    ]
    return "\n".join(part for part in parts if part)


def front_matter(about: About) -> str:
    """Return the YAML block that the Hub reads: licence, tags, size and tasks."""
    licence = about.source.licence
    known = licence.lower() in HUB_LICENCES
    fields: dict[str, Any] = {"license": licence.lower() if known else "other"}
    if not known:
        fields |= {"license_name": licence.lower().replace(" ", "-"), "license_link": "LICENSE"}
    systems = sorted({_system(manifest) for manifest in about.source.manifests})
    fields |= {
        "pretty_name": about.name,
        "tags": [
            *(["synthetic"] if is_synthetic(about.source) else []),
            *("face-recognition", "faces", "face-data-factory"),
            *(name.replace("_", "-") for name in systems),
        ],
        "size_categories": [size_category(about.images)],
        "task_categories": ["image-classification", "image-feature-extraction"],
    }
    if about.format == "hf":
        data = [{"split": "train", "path": "data/train-*.parquet"}]
        fields["configs"] = [{"config_name": "default", "data_files": data}]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---\n"


def size_category(images: int) -> str:
    """Return the Hub's name for a size, such as 10K<n<100K."""
    if images < SMALLEST:
        return f"n<{SIZES[0]}"
    steps = len(str(images)) - len(str(SMALLEST))
    return f"{SIZES[steps]}<n<{SIZES[steps + 1]}" if steps < len(SIZES) - 1 else f"n>{SIZES[-1]}"


def is_synthetic(source: Source) -> bool:
    """Tell whether every image was made by a model."""
    return all(m.digitalSourceType == DIGITAL_SOURCE_TYPE for m in source.manifests)


def use(about: About) -> str:
    """Return the commands to train from the export."""
    name = about.name
    kit = f"""\
```
ln -s "$PWD/{name}_{NETWORKS[0]}.py" ARCFACE_TORCH/configs/
cd ARCFACE_TORCH && torchrun --nproc_per_node={GPUS} train_v2.py configs/{name}_{NETWORKS[0]}
```

Link the configuration, or copy it and set `DATA_ROOT` to the folder above this one. Benchmarks such
as `lfw.bin` are read when they lie beside `train.rec`. DALI reads records of the im2rec dialect;
this is {about.dialect}.
"""
    cvl = f"""\
```
cp {name}.yaml CVLFACE/cvlface/research/recognition/code/run_v1/dataset/configs/
DATA_ROOT=$(dirname "$PWD") python train.py dataset=configs/{name}.yaml
```

`ldmk_5points.csv` has each face's five points where a detector found them, else the template's.
"""
    folder = f"""\
```
torchvision.datasets.ImageFolder("{name}")
datasets.load_dataset("imagefolder", data_dir="{name}")
```
"""
    parquet = f"""\
```
datasets.load_dataset("{name}", split="train")
```

`sidecar` is JSON: identity, slot, seed and system of each image.
"""
    wds = f"""\
```
webdataset.WebDataset(sorted(glob.glob("{name}/*.tar")), shardshuffle=100).decode("rgb")
    .to_tuple("jpg;png", "cls")
```

`index.json` is the index for wids. Samples are shuffled over all labels already.
"""
    condition = "True" if about.classes <= LARGEST_ONE_HOT else "False"
    edm = f"""\
```
torchrun --standalone --nproc_per_node={GPUS} train.py --data={name}.zip --cond={condition}
python train_edm2.py --data={name}.zip --cond={condition}
```

Labels become one-hot vectors of {about.classes:,} numbers with `--cond=True`.
"""
    texts = {
        "arcface_torch": kit,
        "cvlface": cvl,
        "imagefolder": folder,
        "hf": parquet,
        "wds": wds,
        "edm": edm,
    }
    small = (
        f"\nThe networks of this trainer take {TRAINER_SIZE} px; these images are {about.size} px: "
        f"export with `--size {TRAINER_SIZE}`.\n"
    )
    fits = about.format not in ("arcface_torch", "cvlface") or about.size == TRAINER_SIZE
    return texts[about.format] + ("" if fits else small)


def _summary(about: About) -> str:
    synthetic = is_synthetic(about.source)
    what = "synthetic face images" if synthetic else "face images, not all synthetic,"
    resized = f", resized from {about.made_size} px" if about.size != about.made_size else ""
    as_found = any(m.recipe.get("align") is False for m in about.source.manifests)
    aligned = "" if as_found else ", aligned on the five-point ArcFace template"
    return (
        f"{about.images:,} {what} of {about.classes:,} identities, {about.size} x {about.size} "
        f"pixels{resized}{aligned}, RGB. Labels are 0 to "
        f"{about.classes - 1}. Made by face-data-factory.\n"
    )


def _contents(about: About) -> str:
    totals = [manifest.totals for manifest in about.source.manifests]
    rows = {
        "images": f"{about.images:,}",
        "identities": f"{about.classes:,}",
        "planned in the datasets it comes from": f"{sum(t.planned for t in totals):,}",
        "kept by the screens": f"{sum(t.kept for t in totals):,}",
    }
    reasons: Counter[str] = Counter()
    for one in totals:
        reasons.update(one.reasons)
    rows |= {f"images rejected: {name}": f"{reasons[name]:,}" for name in sorted(reasons)}
    if about.pairs:
        file = f"{validation_name(about)}.bin"
        rows["held-out pairs"] = (
            f"{about.pairs:,} of {about.held_out:,} more identities, in `{file}`"
        )
    checks = (
        "\nOrder and labels depend on the source"
        f" and the seed ({about.seed}) only. `SHA256SUMS` was written last: check it with "
        "`sha256sum --check SHA256SUMS`.\n"
    )
    return "## Contents\n\n" + _table(("what", "count"), rows) + checks


def _making(about: About) -> str:
    parts = ["## How it was made\n"]
    parts += [_made(manifest) for manifest in about.source.manifests]
    models = "".join(_model(model) for model in about.source.models)
    head = "| model | file | licence | sha256 |\n|---|---|---|---|\n"
    parts.append(head + models if models else "No trained model took part.\n")
    return "\n".join(parts)


def _made(manifest: DatasetManifest) -> str:
    recipe = manifest.recipe
    rows = {
        "recipe": recipe["name"],
        "system": _system(manifest),
        "content digest": f"`{manifest.content_digest}`",
        "digital source type": manifest.digitalSourceType,
        "licence": manifest.licence,
        **{f"screen {name}": text for name, text in _screens(recipe)},
        **{f"version of {name}": version for name, version in manifest.created_with.items()},
    }
    return _table(("what", "value"), rows)


def _system(manifest: DatasetManifest) -> str:
    return manifest.recipe.get("system", manifest.recipe["kind"])


def _screens(recipe: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    for name, setting in (recipe.get("screens") or {}).items():
        if isinstance(setting, dict):
            setting = ", ".join(f"{key} {value}" for key, value in setting.items())
        found.append((name, "off" if setting is None else str(setting)))
    return found


def _model(model: Model) -> str:
    return f"| {model.name} | {model.location} | {model.licence} | `{model.sha256}` |\n"


def _metrics(measured: Sequence[dict[str, Any]]) -> str:
    if not measured:
        return ""
    parts = ["## Measured\n"]
    for result in measured:
        who = result.get("recognizer")
        if isinstance(who, dict):
            parts.append(
                f"Under {who.get('name')} (licence {who.get('licence')}, sha256 "
                f"`{who.get('sha256')}`):\n"
            )
        numbers = {
            name: f"{value:.6g}"
            for name, value in result.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        parts.append(_table(("figure", "value"), numbers))
    return "\n".join(parts)


def _licence(about: About) -> str:
    return (
        f"## Licence\n\n{about.source.licence}: the strictest of the recipe's and of every model "
        "that touched the images. See `LICENSE`.\n"
    )


def _recipe(about: About) -> str:
    text = yaml.safe_dump(about.source.recipe, sort_keys=True)
    return (
        "## Recipe\n\n"
        f"The sha256 of what says what this is (manifest.json or composition.json) is "
        f"`{about.source.sha256}`.\n\n```yaml\n{text}```\n"
    )


def licence_text(about: About) -> str:
    """Return the file LICENSE: the licence's name, the address of its text, and the reason."""
    source = about.source
    lines = [f"{about.name} may be used under: {source.licence}", ""]
    for licence in source.licence.split(" AND "):
        if licence.lower() in HUB_LICENCES - {"unknown", "openrail"}:
            lines.append(f"Text: {SPDX}{licence}.html")
    lines += [
        "It is the strictest of the datasets and of all models that touched an image:",
        "",
    ]
    for manifest in source.manifests:
        lines.append(f"  {manifest.licence}  dataset {manifest.recipe['name']}")
    lines += [f"  {m.licence}  model {m.name}, sha256 {m.sha256}" for m in source.models]
    return "\n".join(lines) + "\n"


def _table(head: tuple[str, str], rows: dict[str, str]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(lines) + "\n"
