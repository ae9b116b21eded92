"""Which DICOM tags give labels, and under which names.

    label          tag
    subject        PatientID, unless it is a word for nobody, such as ANONYMOUS
    modality       Modality, in medret's vocabulary: MR -> MRI, PT -> PET
    body_region    BodyPartExamined, else the meaning of AnatomicRegionSequence, in medret's vocabulary
    sequence       of MRI: PulseSequenceName, SequenceName or ScanningSequence
    UNCHANGED      under their own names

These are personal data, subject and dates above all: `--no-dicom-labels` keeps them out of a store.
"""

from __future__ import annotations

from collections.abc import Iterable

from medret.errors import UsageError

UNCHANGED = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "StudyDate",
    "Manufacturer",
    "ConvolutionKernel",
)
LABEL_OF = {
    "PatientID": "subject",
    "Modality": "modality",
    "BodyPartExamined": "body_region",
    "AnatomicRegionSequence": "body_region",
    "PulseSequenceName": "sequence",
    "SequenceName": "sequence",
    "ScanningSequence": "sequence",
    **{name: name for name in UNCHANGED},
}
EVERY_TAG = "all"


def labels_of_tags(texts: Iterable[str]) -> frozenset[str]:
    """The labels of these tags. texts: keywords, or several with commas between them, or EVERY_TAG; raises UsageError.

    Several tags may give one label; each of them names it.
    """
    known = {keyword.lower(): label for keyword, label in LABEL_OF.items()}
    labels: set[str] = set()
    for word in (word.strip() for text in texts for word in text.split(",")):
        if word.lower() == EVERY_TAG:
            labels.update(LABEL_OF.values())
        elif word.lower() in known:
            labels.add(known[word.lower()])
        else:
            raise UsageError(
                f"--no-dicom-labels: no label is taken from a tag {word!r}; there are {', '.join(LABEL_OF)}, and "
                f"{EVERY_TAG} for all of them"
            )
    return frozenset(labels)
