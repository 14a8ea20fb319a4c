"""Accuracies that the papers publish, for tables beside ours, where they are marked as published.

They belong to recognizers that were trained by each paper's own recipe and tested on photographs.
Desk figures belong to rendered faces, so only the order of magnitude of a gap can be compared.
"""

from dataclasses import dataclass

from factory.evaluation.gap import Gap, gap

COLUMNS = ("lfw", "cfp_fp", "cplfw", "agedb_30", "calfw")
NOTE = (
    "Published by the papers, in percent, on photographs, with each paper's own training recipe; "
    "not comparable with figures of the studio's faces."
)
DCFACE = "DCFace, Tab. 4 (IR-SE50, AdaFace)"
IDIFF_FACE = "IDiff-Face, results table of its code (iResNet-50, CosFace)"
CEMIFACE = "CemiFace, Tab. 6 (IR-SE50, CosFace)"


@dataclass(frozen=True)
class Published:
    """One published row.

    Attributes:
        system: the training data of the recognizer.
        images: identities x images, or the number of images.
        accuracies: in percent, in the order of `COLUMNS`; None if not published.
        average: in percent.
        real: average of the real baseline under the same recipe; None if the paper has none.
        source: paper and table, with the recognizer.
    """

    system: str
    images: str
    accuracies: tuple[float | None, ...]
    average: float
    real: float | None
    source: str

    @property
    def gap(self) -> Gap | None:
        """Return the gap to the real baseline of the same recipe, in both definitions."""
        return None if self.real is None else gap([self.real / 100], [self.average / 100])


PUBLISHED = (
    Published("CASIA-WebFace (real)", "10.5K, 0.49M", (99.42, 96.56, 89.73, 94.08, 93.32), 94.62,
              None, DCFACE),
    Published("SynFace", "10K x 50", (91.93, 75.03, 70.43, 61.63, 74.73), 74.75, 94.62, DCFACE),
    Published("DigiFace", "10K x 50", (95.40, 87.40, 78.87, 76.97, 78.62), 83.45, 94.62, DCFACE),
    Published("DCFace", "10K x 50", (98.55, 85.33, 82.62, 89.70, 91.60), 89.56, 94.62, DCFACE),
    Published("DCFace", "20K x 50", (98.83, 88.40, 84.22, 90.45, 92.38), 90.86, 94.62, DCFACE),
    Published("DCFace", "20K x 50 + 40K x 5", (98.58, 88.61, 85.07, 90.97, 92.82), 91.21, 94.62,
              DCFACE),
    Published("CASIA-WebFace (real)", "10.5K, 0.49M", (99.30, 94.87, 89.65, 94.35, 93.15), 94.26,
              None, CEMIFACE),
    Published("DCFace", "0.5M", (98.33, 87.70, 83.26, 90.01, 91.61), 90.18, 94.26, CEMIFACE),
    Published("CemiFace", "0.5M", (99.03, 91.06, 87.65, 91.33, 92.42), 92.30, 94.26, CEMIFACE),
    Published("CemiFace", "1.0M", (99.18, 92.75, 88.42, 91.97, 93.01), 93.07, 94.26, CEMIFACE),
    Published("CemiFace", "1.2M", (99.22, 92.84, 88.86, 92.13, 93.03), 93.22, 94.26, CEMIFACE),
    Published("IDiff-Face, uniform", "10K x 50", (97.68, 82.39, 79.70, 84.63, 90.58), 87.00, None,
              IDIFF_FACE),
    Published("IDiff-Face, uniform, RandAugment", "10K x 50", (98.00, 85.47, 80.45, 86.43, 90.65),
              88.20, None, IDIFF_FACE),
    Published("IDiff-Face, two-stage, RandAugment", "10K x 50",
              (97.32, 81.80, 77.92, 83.45, 87.98), 85.69, None, IDIFF_FACE),
    Published("ID3 (FFHQ)", "0.5M", (None, 85.00, None, 83.78, None), 86.50, None,
              "ID3, as quoted by others (LResNet50-IR)"),
)  # fmt: skip
