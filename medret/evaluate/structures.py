"""The structures that TotalSegmentator segments by name, and the coarse ones that they belong to: a table of facts.

The 104 names are those of version 1 of the data set (Wasserthal et al., arXiv 2208.05868); `MORE` are the names that
version 2 added. The retrieval benchmark of Khun Jush et al. (arXiv 2405.09334) scores these 104 and 29 coarse ones.
Which 29 it took is not known to medret. Those here are medret's own: sides, lobes, chambers, levels and the three
gluteal muscles are joined, and so are the six great vessels.
"""

from __future__ import annotations

from collections.abc import Sequence

VERTEBRAE = tuple(f"vertebrae_{part}{n}" for part, last in (("C", 7), ("T", 12), ("L", 5)) for n in range(1, last + 1))
RIBS = tuple(f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13))


def _sides(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}_{side}" for name in names for side in ("left", "right"))


COARSE: dict[str, Sequence[str]] = {
    "adrenal_gland": _sides("adrenal_gland"),
    "autochthon": _sides("autochthon"),
    "brain": ("brain",),
    "clavicula": _sides("clavicula"),
    "colon": ("colon",),
    "duodenum": ("duodenum",),
    "esophagus": ("esophagus",),
    "face": ("face",),
    "femur": _sides("femur"),
    "gallbladder": ("gallbladder",),
    "gluteus": _sides("gluteus_maximus", "gluteus_medius", "gluteus_minimus"),
    "heart": (
        "heart_myocardium",
        *(f"heart_{chamber}_{side}" for chamber in ("atrium", "ventricle") for side in ("left", "right")),
    ),
    "hip": _sides("hip"),
    "humerus": _sides("humerus"),
    "iliopsoas": _sides("iliopsoas"),
    "kidney": _sides("kidney"),
    "liver": ("liver",),
    "lung": (
        *(f"lung_{lobe}_lobe_left" for lobe in ("upper", "lower")),
        *(f"lung_{lobe}_lobe_right" for lobe in ("upper", "middle", "lower")),
    ),
    "pancreas": ("pancreas",),
    "rib": RIBS,
    "sacrum": ("sacrum",),
    "scapula": _sides("scapula"),
    "small_bowel": ("small_bowel",),
    "spleen": ("spleen",),
    "stomach": ("stomach",),
    "trachea": ("trachea",),
    "urinary_bladder": ("urinary_bladder",),
    "vertebrae": VERTEBRAE,
    "vessels": (
        "aorta",
        "inferior_vena_cava",
        "portal_vein_and_splenic_vein",
        "pulmonary_artery",
        *_sides("iliac_artery", "iliac_vena"),
    ),
}
FINE = tuple(sorted(name for names in COARSE.values() for name in names))
# Names of version 2 -> the coarse structure; those without one are left as they are.
MORE = {
    "heart": "heart",
    "atrial_appendage_left": "heart",
    "kidney_cyst_left": "kidney",
    "kidney_cyst_right": "kidney",
    "lung_left": "lung",
    "lung_right": "lung",
    "vertebrae_S1": "vertebrae",
    "vertebrae": "vertebrae",
    **dict.fromkeys(
        (
            "brachiocephalic_trunk",
            "pulmonary_vein",
            "superior_vena_cava",
            *_sides("brachiocephalic_vein", "common_carotid_artery", "subclavian_artery"),
        ),
        "vessels",
    ),
}

_COARSE_OF = {name: coarse for coarse, names in COARSE.items() for name in names} | MORE


def coarse_of(structure: str) -> str | None:
    """The coarse structure that a structure of TotalSegmentator belongs to, or that it is; None for other names."""
    return _COARSE_OF.get(structure, structure if structure in COARSE else None)
