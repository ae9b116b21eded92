"""Truth by slice and the four ways to ask, on phantoms whose structures are known."""

from __future__ import annotations

import csv
import gzip
import json
import math
import runpy
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

import medret
from medret.cli import main
from medret.demo.phantoms import KINDS, STRUCTURES, write_corpus
from medret.embeddings import Slices, plane_codes, unit_slices
from medret.errors import UsageError
from medret.evaluate import Bootstrap, Selection
from medret.evaluate.masks import COARSE, FINE, Mask, coarse_of, find_masks, read_names
from medret.evaluate.slice_truth import COUNTS, count_voxels, counts_table, read_counts
from medret.evaluate.structure_figures import StructureEvaluation, StructureOptions
from medret.evaluate.structure_retrieval import evaluate_structures
from medret.recipe import Recipe, SliceRecipe
from medret.search import Snapshot, open_snapshot
from medret.volume import Limits, content_sha256, read_volume
from medret.volume.open import open_volume
from medret.volume.sample import Box

SHAPE = (40, 36, 20)
SIDE = 16
RECIPE = SliceRecipe(planes=("axial", "sagittal"), slices="uniform:5")
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
NAMES = dict(enumerate(STRUCTURES, start=1))
OPTIONS = StructureOptions(min_relevant=1, bootstrap=Bootstrap(20))


@dataclass(frozen=True)
class Archive:
    """An archive of phantoms with masks, and a store of it whose vectors are the pixels of its slices."""

    folder: Path
    masks: Path
    store: str
    boxes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]


def embedded(stores: ModuleType, path: Path, volume_id: str, recipe: Recipe, modality: str) -> tuple[Slices, Any]:
    """A volume whose vectors are the pixels of its slices, and its row of the ledger."""
    data = path.read_bytes()
    read = read_volume(data, volume_id, recipe.slices, [SIDE], modality=modality)
    vectors, norms = unit_slices(read.pixels[SIDE].reshape(len(read.slices), -1).astype(np.float32) + 1)
    at = [(ref.slice_index, ref.relative_position, ref.position_mm) for ref in read.slices]
    positions, relative, mm = (np.array(column, np.float32) for column in zip(*at, strict=True))
    planes = plane_codes([ref.plane for ref in read.slices])
    slices = Slices(vectors, planes, positions.astype(np.int32), relative, mm, norms, volume_id=volume_id)
    row = stores.ledger_row(
        volume_id,
        uri=str(path),
        modality=modality,
        content_sha256=content_sha256(data),
        facts=json.dumps(read.facts.to_json()),
        shards=[(recipe.digest, "shard-0")],
    )
    return slices, row


@pytest.fixture(scope="session")
def archive(stores: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    folder = tmp_path_factory.mktemp("structures") / "archive"
    masks = folder.with_name("masks")
    write_corpus(folder, volumes_per_kind=3, shape=SHAPE, masks=masks)
    model = replace(stores.recipe_of().model, dim=SIDE * SIDE, image_size=SIDE)
    recipe = Recipe(RECIPE, model)
    volumes, rows, boxes = [], [], {}
    for number, path in enumerate(sorted(folder.rglob("*.nii.gz"))):
        volume_id, kind = path.relative_to(folder).as_posix(), KINDS[path.parent.name]
        volume, row = embedded(stores, path, volume_id, recipe, kind.modality)
        volumes.append(volume)
        boxes[volume_id] = json.loads(row["facts"])["crop_box"]
        subject, shard = f"{kind.name if number % 2 else 'someone'}-{number // 4}", f"shard-{number // 10}"
        rows.append(row | {"subject": subject, "organ": kind.organ, "shards": [(recipe.digest, shard)]})
    made = stores.make_store(
        folder.with_name("store"), tuple(volumes), recipe=recipe, ledger=rows, archive=str(folder), per_shard=10
    )
    return Archive(folder, masks, made.uri, boxes)


@pytest.fixture(scope="session")
def evaluated(archive: Archive) -> tuple[StructureEvaluation, Snapshot]:
    """One evaluation, of every mode with the exact index, for all tests of figures."""
    snapshot = open_snapshot(archive.store)
    masks = find_masks(str(archive.masks), snapshot.labels(), str(archive.masks / "structures.csv"))
    options = replace(OPTIONS, selection=Selection(indices=["exact"]), absent=True)
    return evaluate_structures(snapshot, masks, options)[0], snapshot


def voxels_of(archive: Archive, volume_id: str) -> dict[tuple[str, int], dict[str, int]]:
    """Plane and slice -> structure -> voxels, by nibabel and numpy alone."""
    voxels = np.asanyarray(nib.as_closest_canonical(nib.load(archive.masks / volume_id)).dataobj)
    first, last = archive.boxes[volume_id]
    inside = voxels[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
    found: dict[tuple[str, int], dict[str, int]] = {}
    for plane, axis in AXES.items():
        for at in range(inside.shape[axis]):
            values = np.take(inside, at, axis=axis)
            names = {NAMES[value]: int((values == value).sum()) for value in np.unique(values).tolist() if value}
            found[plane, at + first[axis]] = names
    return found


def test_a_slice_shows_what_lies_in_its_crop(archive: Archive) -> None:
    snapshot = open_snapshot(archive.store)
    masks = find_masks(str(archive.masks), snapshot.labels(), str(archive.masks / "structures.csv"))
    planes = dict.fromkeys(masks, RECIPE.planes)
    counts = read_counts(snapshot, masks, planes, crop=True)
    assert counts.keys() == archive.boxes.keys()
    for volume_id, one in counts.items():
        expected = voxels_of(archive, volume_id)
        found = defaultdict[tuple[str, int], dict[str, int]](dict)
        for row in one.table.to_pylist():
            found[row["plane"], row["position"]][row["structure"]] = row["voxels"]
        assert found == {key: names for key, names in expected.items() if names and key[0] in RECIPE.planes}
        assert one.structures == set(STRUCTURES), "the names say what would be shown"
    table = counts_table(counts)
    assert table.schema.names == ["volume_id", *COUNTS.names]
    again = read_counts(snapshot, dict(list(masks.items())[:1]), planes, crop=True)
    assert next(iter(again.values())).table.equals(counts[next(iter(again))].table), "they are kept"


def test_a_structure_outside_the_crop_is_not_shown(tmp_path: Path) -> None:
    voxels = np.full((30, 30, 12), -1000, np.int16)
    voxels[8:22, 6:20] = 50
    labels = np.zeros(voxels.shape, np.uint8)
    labels[8:22, 6:20, 3:5], labels[0, 0, :] = 1, 2
    volume, mask = (nib.Nifti1Image(data, np.diag([-2.0, 2, 3, 1])).to_bytes() for data in (voxels, labels))
    stored = open_volume(volume, Limits())
    box = read_volume(volume, "x", SliceRecipe(), [8], modality="CT").facts.crop_box
    assert box[0][0] > 0
    cropped = count_voxels(stored, [(Mask("m"), mask)], Box(*box), ["axial"])
    assert cropped.table.to_pylist() == [
        {"plane": "axial", "position": at, "structure": "value 1", "voxels": 14 * 14} for at in (3, 4)
    ]
    whole = count_voxels(stored, [(Mask("m"), mask)], None, ["axial"])
    assert [row["position"] for row in whole.table.to_pylist() if row["structure"] == "value 2"] == list(range(12))
    assert cropped.structures == whole.structures


def test_a_volume_of_one_slice_shows_what_it_shows_in_its_own_plane(stores: ModuleType, tmp_path: Path) -> None:
    model = replace(stores.recipe_of().model, dim=SIDE * SIDE, image_size=SIDE)
    recipe, rng = Recipe(SliceRecipe(planes=("sagittal",)), model), np.random.default_rng(0)
    made = []
    for number in range(3):
        marks = np.zeros((20, 20, 1), np.uint8)
        marks[5:9, 5:9] = 1
        for folder, voxels in (("archive", rng.integers(0, 900, marks.shape, np.int16)), ("masks", marks)):
            (tmp_path / folder).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / folder / f"{number}.nii.gz")
        made.append(embedded(stores, tmp_path / f"archive/{number}.nii.gz", f"{number}.nii.gz", recipe, "MRI"))
    volumes, rows = zip(*made, strict=True)
    archive = str(tmp_path / "archive")
    store = stores.make_store(tmp_path / "store", volumes, recipe=recipe, ledger=list(rows), archive=archive)
    found = medret.evaluate_masks(open_snapshot(store.uri), tmp_path / "masks", min_relevant=1)
    assert found.structures == {"structure": {"value 1": 3}}
    assert {row["chance"] for row in found.rows if row["metric"] == "recall@1"} == {1.0}


# --- figures by their definitions ------------------------------------------------------------------------------------

Shown = dict[str, list[set[str]]]  # volume_id -> what each stored slice shows


def shown_by(archive: Archive, snapshot: Snapshot, rename: Callable[[str], str | None]) -> Shown:
    found: Shown = {}
    for volume_id in archive.boxes:
        voxels, slices = voxels_of(archive, volume_id), snapshot.slices_of(volume_id)
        assert slices is not None
        assert slices.slice_indices is not None
        keys = zip(slices.plane_names, slices.slice_indices.tolist(), strict=True)
        named = [{rename(name) for name in voxels[str(plane), at]} for plane, at in keys]
        found[volume_id] = [{name for name in names if name} for names in named]
    return found


def cosines_of(snapshot: Snapshot, query: str, rows: list[int], other: str) -> NDArray[np.float64]:
    one, two = snapshot.slices_of(query), snapshot.slices_of(other)
    assert one is not None
    assert two is not None
    cosines = one.vectors[rows].astype(np.float64) @ two.vectors.astype(np.float64).T
    return np.where(one.planes[rows][:, None] == two.planes[None], cosines, -np.inf)


Figures = dict[tuple[str, str, str], tuple[float, float, int]]  # way, structure, metric -> value, chance, items


def voted(snapshot: Snapshot, query: str, others: list[str], rows: list[int]) -> list[str]:
    """The volumes by how many of the 20 nearest slices of each slice are theirs; ties by summed cosines, then by id."""
    one = snapshot.slices_of(query)
    assert one is not None
    votes, sums = defaultdict[str, int](int), defaultdict[str, float](float)
    for row in rows:
        pairs = []
        for other in others:
            hit = snapshot.slices_of(other)
            assert hit is not None
            pairs += [
                (cosine, other) for cosine in hit.vectors.astype(np.float64) @ one.vectors[row].astype(np.float64)
            ]
        for cosine, other in sorted(pairs, reverse=True)[:20]:
            votes[other] += 1
            sums[other] += cosine
    return sorted(votes, key=lambda one: (-votes[one], -round(sums[one] / 20 / len(rows), 9), one))


def by_definition(
    archive: Archive, snapshot: Snapshot, rename: Callable[[str], str | None], mode: str = "late"
) -> Figures:
    """The figures of late interaction, of votes and of single slices, from their definitions, volume by volume."""
    shown = shown_by(archive, snapshot, rename)
    labels = snapshot.labels()
    subjects = dict(zip(labels["volume_id"].to_pylist(), labels["subject"].to_pylist(), strict=True))
    items = defaultdict[tuple[str, str, str], list[tuple[float, float]]](list)
    for query, slices in shown.items():
        others = [one for one in shown if subjects[one] != subjects[query]]

        def ranked(others: list[str], rows: list[int], query: str = query) -> list[str]:
            if mode == "vote":
                return voted(snapshot, query, others, rows)
            scores = {one: cosines_of(snapshot, query, rows, one).max(axis=1).mean() for one in others}
            return sorted(others, key=lambda one: (-np.float32(scores[one]), one))

        for name in sorted(set().union(*slices)):
            relevant = [one for one in others if any(name in names for names in shown[one])]
            if not relevant:
                continue
            share = len(relevant) / len(others)
            parts = {other: np.mean([name in names for names in shown[other]]) for other in others}
            asking = [row for row, names in enumerate(slices) if name in names]
            for way, rows in (("volume", list(range(len(slices)))), ("region", asking)):
                order = ranked(others, rows)
                ranks = [float(rank) for rank, one in enumerate(order, start=1) if one in relevant] or [math.inf]
                items[way, name, "recall@1"].append((float(ranks[0] == 1), share))
                precision = sum(number / rank for number, rank in enumerate(ranks, start=1)) / len(relevant)
                items[way, name, "mAP"].append((precision, math.nan))
            order = ranked(others, asking)
            cosines = cosines_of(snapshot, query, asking, order[0])
            pairs = sorted((-cosines[row].max(), row, int(cosines[row].argmax())) for row in range(len(asking)))[:15]
            matches = [name in shown[order[0]][at] for _, _, at in pairs]
            drawn = float(np.mean([1 - (1 - part) ** min(15, len(asking)) for part in parts.values()]))
            items["localised", name, "recall@1"].append((float(any(matches)), drawn))
            items["localised", name, "localisation@15"].append(
                (float(np.mean(matches)), float(np.mean(list(parts.values()))))
            )
            if order[0] in relevant:
                showing = [float(parts[one]) for one in relevant]
                items["within", name, "localisation@15"].append((float(np.mean(matches)), float(np.mean(showing))))
            every = [names for other in others for names in shown[other]]
            for row in asking:
                one = snapshot.slices_of(query)
                assert one is not None
                best, nearest = -2.0, set[str]()
                for other in others:
                    hit = snapshot.slices_of(other)
                    assert hit is not None
                    found = one.vectors[row].astype(np.float64) @ hit.vectors.astype(np.float64).T
                    if found.max() > best + 1e-9:
                        best, nearest = found.max(), shown[other][int(found.argmax())]
                seen = float(np.mean([name in names for names in every]))
                items["slice", name, "recall@1"].append((float(name in nearest), seen))
    return {
        key: (
            float(np.mean([value for value, _ in found])),
            float(np.mean([chance for _, chance in found])),
            len(found),
        )
        for key, found in items.items()
    }


@pytest.mark.parametrize(
    ("level", "mode"), [("structure", "late"), ("structure", "vote"), ("coarse_structure", "late")]
)
def test_figures_follow_from_their_definitions(
    level: str, mode: str, evaluated: tuple[StructureEvaluation, Snapshot], archive: Archive
) -> None:
    evaluation, snapshot = evaluated
    rename = (lambda name: name) if level == "structure" else coarse_of
    expected = by_definition(archive, snapshot, rename, mode)
    rows = [row for row in evaluation.rows if row["level"] == level and row["mode"] in ("slice", mode)]
    found = {(row["asks"], row["class"], row["metric"]): row for row in rows}
    assert set(expected) <= found.keys()
    for key, (value, chance, count) in expected.items():
        assert found[key]["value"] == pytest.approx(value, abs=1e-9), key
        assert found[key]["n"] == count, key
        if not math.isnan(chance):
            assert found[key]["chance"] == pytest.approx(chance, abs=1e-9), key
    for asks, metric in {(asks, metric) for asks, _, metric in expected}:
        means = [value for (way, _, name), (value, _, _) in expected.items() if (way, name) == (asks, metric)]
        assert found[asks, "macro", metric]["value"] == pytest.approx(np.mean(means), abs=1e-9)


# --- masks and their names -------------------------------------------------------------------------------------------


def labels_of(*volume_ids: str, **columns: list[str | None]) -> pa.Table:
    return pa.table({"volume_id": list(volume_ids), **columns})


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_masks_of_totalsegmentator_msd_and_nnunet(tmp_path: Path) -> None:
    touch(tmp_path, "s0001/ct.nii.gz", "s0001/segmentations/liver.nii.gz", "s0001/segmentations/rib_left_1.nii.gz")
    touch(tmp_path, "Task04_Hippocampus/imagesTr/h_001.nii.gz", "Task04_Hippocampus/labelsTr/h_001.nii.gz")
    touch(tmp_path, "Dataset007_X/imagesTr/x_1_0001.nii.gz", "Dataset007_X/labelsTr/x_1.nii.gz")
    labels = {"0": "background", "1": "Anterior", "2": "Posterior"}
    (tmp_path / "Task04_Hippocampus/dataset.json").write_text(json.dumps({"labels": labels}))
    (tmp_path / "Dataset007_X/dataset.json").write_text(json.dumps({"labels": {"background": 0, "pancreas": 1}}))
    images = ("s0001/ct.nii.gz", "Task04_Hippocampus/imagesTr/h_001.nii.gz", "Dataset007_X/imagesTr/x_1_0001.nii.gz")
    found = find_masks(str(tmp_path), labels_of(*images, "other/volume.nii.gz"), None, str(tmp_path))
    assert found == {
        images[0]: (
            Mask(f"{tmp_path}/s0001/segmentations/liver.nii.gz", "liver"),
            Mask(f"{tmp_path}/s0001/segmentations/rib_left_1.nii.gz", "rib_left_1"),
        ),
        images[1]: (
            Mask(f"{tmp_path}/Task04_Hippocampus/labelsTr/h_001.nii.gz", None, {1: "Anterior", 2: "Posterior"}),
        ),
        images[2]: (Mask(f"{tmp_path}/Dataset007_X/labelsTr/x_1.nii.gz", None, {1: "pancreas"}),),
    }


def test_masks_of_a_table_and_of_a_label(tmp_path: Path) -> None:
    touch(tmp_path, "masks/a.nii.gz", "masks/b.nii.gz")
    lines = ("path,mask,structure", "a.nii.gz,masks/a.nii.gz,liver", "a.nii.gz,masks/b.nii.gz,1=spleen;2=kidney", "b,,")
    (tmp_path / "masks.csv").write_text("\n".join(lines))
    found = find_masks(str(tmp_path / "masks.csv"), labels_of("below/a.nii.gz", "b"))
    masks = (
        Mask(f"{tmp_path}/masks/a.nii.gz", "liver"),
        Mask(f"{tmp_path}/masks/b.nii.gz", None, {1: "spleen", 2: "kidney"}),
    )
    assert found == {"below/a.nii.gz": masks}
    label = labels_of("x", "y", "z", mask=["masks/a.nii.gz", "../masks/a.nii.gz", None])
    assert find_masks(str(tmp_path), label) == {"x": (Mask(f"{tmp_path}/masks/a.nii.gz"),)}, "a store names no place"


def test_names_of_values(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("value,name\n0,background\n1,liver\n2,spleen\n")
    assert read_names(str(tmp_path / "names.csv")) == {1: "liver", 2: "spleen"}
    assert Mask("m").name_of(3) == "value 3"
    with pytest.raises(UsageError, match=r"mask m holds the value 3, which has no name \(names are 1 liver\)"):
        Mask("m", None, {1: "liver"}).name_of(3)
    (tmp_path / "names.json").write_text('{"labels": {"liver": [1, 2]}}')
    with pytest.raises(UsageError, match="is no whole number with one name: 'liver'"):
        read_names(str(tmp_path / "names.json"))


def test_totalsegmentator_has_104_fine_and_29_coarse_structures() -> None:
    assert (len(FINE), len(set(FINE)), len(COARSE)) == (104, 104, 29)
    assert {coarse_of(name) for name in FINE} == COARSE.keys()
    assert coarse_of("kidney") == "kidney"
    assert coarse_of("prostate") is None


# --- what cannot be used ---------------------------------------------------------------------------------------------


def volume_and_mask(mask: NDArray[Any], shift_mm: float = 0.0) -> tuple[Any, bytes]:
    rng = np.random.default_rng(0)
    volume = nib.Nifti1Image(rng.integers(0, 99, (12, 12, 10), dtype=np.int16), np.eye(4))
    place = np.eye(4)
    place[2, 3] = shift_mm
    return open_volume(volume.to_bytes(), Limits()), nib.Nifti1Image(mask, place).to_bytes()


@pytest.mark.parametrize(
    ("mask", "shift_mm", "message"),
    [
        (np.ones((12, 12, 9), np.uint8), 0, "mask m has 12 x 12 x 9 voxels, not 12 x 12 x 10"),
        (np.ones((12, 12, 10), np.uint8), 1, r"first at \(0.00, 0.00, 1.00\), not of 1 x 1 x 1 mm, the first at \(0"),
        (np.full((12, 12, 10), 0.25, np.float32), 0, "holds the value 0.25, expected whole numbers from 0 to 65535"),
        (np.full((12, 12, 10), -1, np.int16), 0, "holds the value -1"),
    ],
)
def test_a_mask_of_another_grid_or_without_labels_is_refused(mask: NDArray[Any], shift_mm: float, message: str) -> None:
    volume, data = volume_and_mask(mask, shift_mm)
    with pytest.raises(UsageError, match=message):
        count_voxels(volume, [(Mask("m"), data)], None, ["axial"])


def test_a_volume_is_no_mask_of_itself(archive: Archive) -> None:
    for snapshot in (open_snapshot(archive.store), open_snapshot(archive.store, archive=f"{archive.folder}/")):
        with pytest.raises(UsageError, match="no volume of the store has a mask there"):
            medret.evaluate_masks(snapshot, archive.folder)


def test_errors_name_the_volume_and_the_mask(archive: Archive, tmp_path: Path, stores: ModuleType) -> None:
    snapshot = open_snapshot(archive.store)
    first = next(iter(archive.boxes))
    with pytest.raises(UsageError, match=f"{first}: mask {tmp_path}/none.nii.gz does not exist"):
        read_counts(snapshot, {first: [Mask(f"{tmp_path}/none.nii.gz")]}, {first: ["axial"]}, crop=True)
    other = list(archive.boxes)[-1]
    wrong = Mask(str(archive.masks / other), None, NAMES)
    with pytest.raises(UsageError, match=f"{first}: mask {archive.masks}/{other} has voxels of .* not of"):
        read_counts(snapshot, {first: [wrong]}, {first: ["axial"]}, crop=True)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_scores_structures(archive: Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--masks", str(archive.masks), "--mask-names", str(archive.masks / "structures.csv")]
    files = [tmp_path / name for name in ("figures.csv", "page.html", "counts.parquet")]
    writes = ["--csv", str(files[0]), "--html", str(files[1]), "--mask-counts", str(files[2])]
    options = ["--min-relevant", "1", "--bootstrap", "20", "--mode", "late", *writes]
    assert main(["evaluate", archive.store, *place, *options]) == 0
    out = capsys.readouterr().out
    for text in ("18 volumes with masks", "structure, macro: value (95 %; chance), n", "localisation@15", "vertebrae"):
        assert text in out
    assert "\\n" not in out
    assert all(path.stat().st_size for path in files)
    assert main(["evaluate", archive.store, *place, *options[:-6], "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    in_python = medret.evaluate_masks(
        open_snapshot(archive.store),
        archive.masks,
        names=archive.masks / "structures.csv",
        min_relevant=1,
        modes=["late"],
    )
    values = [[row["value"] for row in rows] for rows in (document["rows"], in_python.rows)]
    assert values[0] == values[1]
    assert {row["asks"] for row in document["rows"]} == {"slice", "volume", "region", "localised", "within"}
    assert document["structures"]["structure"]["liver"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mask-counts", "x"], "--mask-counts is of --masks"),
        (["--mask-voxels", "50"], "--mask-voxels is of --masks"),
        (["--masks", "{masks}", "--depth", "9"], "depth is 9, expected at least 10"),
        (["--masks", "{masks}", "--level", "organ"], "--level is of an evaluation by labels"),
        (["--masks", "{masks}/head_mri"], "no volume of the store has a mask there"),
        (["--masks", "{masks}", "--exclude", "flavour"], "--exclude 'flavour' is no label"),
        (["--masks", "{masks}", "--mode", "volume"], "mode 'volume' is not in"),
        (["--masks", "{masks}", "--min-relevant", "50"], "no structure is shown by 50 other volumes"),
    ],
)
def test_bad_requests_by_masks_are_one_line(
    archive: Archive, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [option.format(masks=archive.masks) for option in options]
    assert main(["evaluate", archive.store, *given]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert message in captured.err


# --- published protocols ---------------------------------------------------------------------------------------------


def run_bench(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(Path(__file__).parents[2] / "bench" / f"{name}.py"), run_name="__main__")


def test_the_protocol_on_totalsegmentator_stands_beside_its_figures(
    archive: Archive, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = str(archive.masks / "structures.csv")
    arguments = (archive.store, str(archive.masks), "--mask-names", names, "--unnamed-absent")
    run_bench("totalsegmentator", *arguments, monkeypatch=monkeypatch)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 2 * (1 + 2 * 5), "levels x (single slices, then count and re-ranked: five figures each)"
    published = {tuple(cell.strip("| ") for cell in row[:3]): row[-1] for row in rows if row[-1].startswith("0.")}
    assert published["structure", "region", "re-ranked"].startswith("0.987 (SD 0.024, DreamSim)")


def test_the_protocol_of_3d_mir_names_its_confound(
    archive: Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["path,split,flag,stage,source"]
    for number, name in enumerate(sorted(archive.boxes)):
        flag = int(name.startswith("abdomen"))
        lines.append(f"{name},{'test' if number % 3 == 0 else 'train'},{flag},{flag * 2},{name.split('/')[0]}")
    (tmp_path / "cases.csv").write_text("\n".join(lines))
    found = tmp_path / "found.json"
    options = ("--cases", str(tmp_path / "cases.csv"), "--json", str(found))
    run_bench("mirb3d", archive.store, *options, monkeypatch=monkeypatch)
    rows = json.loads(found.read_text())
    assert {row["by_source"] for row in rows} == {1.0}, "the kind of phantom decides the flag"
    assert {row["ranking"] for row in rows} == {"freq", "max", "sum", "late", "vector, mean", "vector, max"}
    assert {(row["n"], row["candidates"]) for row in rows} == {(6, 12)}
    assert "| late | flag | " in capsys.readouterr().out


@pytest.mark.parametrize("right", [[1, 0, 1, 1, 0, 0, 0, 1, 0, 0], [0] * 10, [1] * 10, [0, 0, 1], []])
def test_scores_of_3d_mir_are_those_of_the_notebooks(right: list[int]) -> None:
    scores = runpy.run_path(str(Path(__file__).parents[2] / "bench" / "mirb3d.py"))["scores"]
    average = average_precision_score(right, list(range(len(right)))[::-1]) if any(right) else 0.0
    expected = [np.mean(right[:cut]) if right else 0.0 for cut in (3, 5, 10)]
    assert scores([bool(one) for one in right]) == pytest.approx([*expected, average])


# --- real masks ------------------------------------------------------------------------------------------------------


def test_counts_of_real_masks_are_those_of_nibabel(shared_data: Path) -> None:
    labels = [row for row in csv.DictReader((shared_data / "labels.csv").open()) if row["mask"]]
    legs = [row for row in labels if row["organ"] == "Leg"]
    for row in [*[row for row in labels if row["organ"] == "Hippocampus"][:3], legs[0]]:
        data, mask = ((shared_data / path).read_bytes() for path in (f"volumes/{row['path']}", row["mask"]))
        read = read_volume(data, row["path"], SliceRecipe(), [8], modality=row["modality"])
        planes = ("axial", "coronal")
        counts = count_voxels(open_volume(data, Limits()), [(Mask("m"), mask)], Box(*read.facts.crop_box), planes)
        voxels = np.asanyarray(nib.as_closest_canonical(nib.Nifti1Image.from_bytes(gzip.decompress(mask))).dataobj)
        first, last = read.facts.crop_box
        inside = voxels[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
        expected = {
            (plane, at + first[AXES[plane]], f"value {value:g}"): int((np.take(inside, at, AXES[plane]) == value).sum())
            for plane in planes
            for at in range(inside.shape[AXES[plane]])
            for value in np.unique(voxels).tolist()
            if value
        }
        found = {tuple(row[name] for name in COUNTS.names[:3]): row["voxels"] for row in counts.table.to_pylist()}
        assert found == {key: count for key, count in expected.items() if count}
