from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from voc_writer import mask_of, save_grey, write_voc

from ddn_fast.data import VocFolder, choose_few, few_masks, read_tags, tags, tags_from_masks
from ddn_fast.errors import DataError

LABELS = {"a": [1], "b": [2, 3], "c": None, "d": []}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_voc(tmp_path / "voc", LABELS, {"train": ["b", "a"], "val": ["c", "a"]})


def write_main(root: Path, split: str, flags: dict[str, dict[str, int]]) -> None:
    (root / "ImageSets/Main").mkdir(exist_ok=True)
    for name, of_class in flags.items():
        text = "".join(f"{image_id} {flag:2d}\n" for image_id, flag in of_class.items())
        (root / f"ImageSets/Main/{name}_{split}.txt").write_text(text)


MAIN = {"cat": {"a": 1, "b": -1}, "dog": {"a": 0, "b": 1}, "owl": {"a": -1, "b": -1}}


def as_lists(found: dict[str, np.ndarray]) -> dict[str, list[int]]:
    assert all(vector.dtype == np.int8 for vector in found.values())
    return {image_id: vector.tolist() for image_id, vector in found.items()}


def test_tags_from_main_turn_difficult_into_unknown(root: Path) -> None:
    write_main(root, "train", MAIN)
    assert as_lists(read_tags(VocFolder(root), "train", "main")) == {"b": [0, 1, 0], "a": [1, -1, 0]}


def test_tags_from_main_look_into_trainval_for_missing_ids(root: Path) -> None:
    write_main(root, "train", {name: {"a": flags["a"]} for name, flags in MAIN.items()})
    write_main(root, "trainval", {name: {"a": -flags["a"], "b": flags["b"]} for name, flags in MAIN.items()})
    assert as_lists(read_tags(VocFolder(root), "train", "main")) == {"b": [0, 1, 0], "a": [1, -1, 0]}


def test_main_without_a_class_or_an_id_is_a_named_error(root: Path) -> None:
    write_main(root, "train", MAIN)
    (root / "ImageSets/Main/owl_train.txt").unlink()
    with pytest.raises(DataError, match=r"owl_train\.txt: no tags of class 'owl'"):
        read_tags(VocFolder(root), "train", "main")
    write_main(root, "train", {"owl": {"a": 1}})
    with pytest.raises(DataError, match=r"owl_train\.txt: 1 of 2 images .* the first is 'b'"):
        read_tags(VocFolder(root), "train", "main")


@pytest.mark.parametrize(
    ("text", "message"),
    [("a 1\nb 2\n", "train.txt:2: wanted"), ("a\n", ":1: wanted"), ("a 1\na 1\n", ":2: 'a' occurs twice")],
)
def test_malformed_main_file_is_a_named_error(root: Path, text: str, message: str) -> None:
    write_main(root, "train", MAIN)
    (root / "ImageSets/Main/dog_train.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_tags(VocFolder(root), "train", "main")


def test_tags_from_masks_leave_out_background_and_void(root: Path) -> None:
    found = read_tags(VocFolder(root), "train", "masks", progress=False)
    assert as_lists(found) == {"b": [0, 1, 1], "a": [1, 0, 0]}
    assert list(found) == ["b", "a"]
    assert as_lists(tags_from_masks(VocFolder(root), ["d"], progress=False)) == {"d": [0, 0, 0]}


def test_tags_from_masks_name_an_image_without_mask(root: Path) -> None:
    with pytest.raises(DataError, match="1 of 2 images have no mask, the first is 'c'"):
        read_tags(VocFolder(root), "val", "masks", progress=False)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the masks that are really read, in order."""
    seen: list[str] = []
    plain = VocFolder.mask

    def mask(self: VocFolder, image_id: str, **options: bool) -> np.ndarray:
        seen.append(image_id)
        return plain(self, image_id, **options)

    monkeypatch.setattr(VocFolder, "mask", mask)
    return seen


def test_cache_spares_unchanged_masks_only(root: Path, tmp_path: Path, reads: list[str]) -> None:
    def run() -> dict[str, list[int]]:
        reads.clear()
        return as_lists(tags_from_masks(VocFolder(root), ["a", "b"], cache_dir=tmp_path / "cache", progress=False))

    first = run()
    assert reads == ["a", "b"]
    assert run() == first
    assert reads == []
    save_grey(mask_of([3, 1, 2]), root / "SegmentationClass/a.png")
    assert run() == {**first, "a": [1, 1, 1]}
    assert reads == ["a"]
    save_grey(mask_of([2]), root / "SegmentationClassAug/b.png")
    assert run() == {"a": [1, 1, 1], "b": [0, 1, 0]}
    assert reads == ["b"]
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".json"]


def test_cache_keeps_what_it_knew_when_one_mask_changes(root: Path, tmp_path: Path, reads: list[str]) -> None:
    def run() -> list[str]:
        reads.clear()
        tags_from_masks(VocFolder(root), ["a", "b", "d"], cache_dir=tmp_path / "cache", progress=False)
        return list(reads)

    assert run() == ["a", "b", "d"]
    save_grey(mask_of([3, 1, 2]), root / "SegmentationClass/a.png")
    assert run() == ["a"]
    assert run() == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "[" * 100_000,
        lambda text: text.replace('"labels":[0]', '"labels":[77]'),
        lambda text: text.replace('"labels":[0]', '"labels":"0"'),
        lambda text: text.replace('"version":1', '"version":2'),
        lambda text: json.dumps({"version": 1, "entries": {"a": 3, "b": None}}),
    ],
)
def test_damaged_cache_is_read_anew(root: Path, tmp_path: Path, damage, reads: list[str]) -> None:
    def run() -> dict[str, list[int]]:
        return as_lists(tags_from_masks(VocFolder(root), ["a", "b"], cache_dir=tmp_path / "cache", progress=False))

    first = run()
    (path,) = (tmp_path / "cache").iterdir()
    damaged = damage(path.read_text())
    assert damaged != path.read_text()
    path.write_text(damaged)
    reads.clear()
    assert run() == first
    assert "a" in reads


def test_scan_that_ends_at_a_bad_mask_keeps_what_it_read(root: Path, tmp_path: Path, reads: list[str]) -> None:
    (root / "SegmentationClass/b.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.png"):
        tags_from_masks(VocFolder(root), ["a", "b"], cache_dir=tmp_path / "cache", progress=False)
    reads.clear()
    tags_from_masks(VocFolder(root), ["a"], cache_dir=tmp_path / "cache", progress=False)
    assert reads == []


def test_cache_that_cannot_be_written_is_a_warning(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot keep the labels"):
        found = tags_from_masks(VocFolder(root), ["a"], cache_dir=tmp_path / "file" / "cache", progress=False)
    assert as_lists(found) == {"a": [1, 0, 0]}


def test_csv_tags_accept_ids_file_names_and_both_separators(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    path.write_text("Image,Tags\nb.png,dog;owl\n\na,cat dog\nc,\n")
    folder = VocFolder(root)
    assert as_lists(read_tags(folder, "train", path)) == {"b": [0, 1, 1], "a": [1, 1, 0]}
    assert as_lists(read_tags(folder, "val", str(path))) == {"c": [0, 0, 0], "a": [1, 1, 0]}


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("red kite", r"unknown class 'red kite'; did you mean Red Kite\? \(classes stand apart by ';', or by spaces\)"),
        ('"Dog,Red Kite"', r"unknown class 'Dog,Red Kite'; did you mean Red Kite\? \(classes stand apart by ';'"),
        ("Dog zebra", r"unknown class 'zebra'; known are Red Kite, Dog, Owl \("),
        ("Dog;owls", r"unknown class 'owls'; did you mean Owl\?$"),
    ],
)
def test_a_class_that_is_nearly_one_is_told(root: Path, tmp_path: Path, cell: str, message: str) -> None:
    (tmp_path / "my.csv").write_text(f"image,tags\na,{cell}\n")
    with pytest.raises(DataError, match=message):
        read_tags(VocFolder(root, ("Red Kite", "Dog", "Owl")), "train", tmp_path / "my.csv")


def test_names_with_spaces_are_ids_in_splits_and_tag_files(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", {"IMG 1": [1], "IMG 1 0": [2]}, {"train": ["IMG 1", "IMG 1 0"]})
    write_main(root, "train", {name: {"IMG 1": k, "IMG 1 0": -k} for name, k in (("cat", 1), ("dog", -1), ("owl", -1))})
    folder = VocFolder(root)
    assert folder.ids("train") == ("IMG 1", "IMG 1 0")
    assert as_lists(read_tags(folder, "train", "main")) == {"IMG 1": [1, 0, 0], "IMG 1 0": [0, 1, 1]}


def test_without_tags_the_error_says_where_they_were_looked_for(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", {"a": [1], "b": None}, {"train": ["a", "b"]})
    with pytest.raises(DataError, match=r"'train' has no tags: neither ImageSets/Main/<class>_train\.txt nor"):
        read_tags(VocFolder(root), "train")


def test_csv_tags_accept_class_names_with_spaces(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    path.write_text('image,tags\nb,potted plant;dog\na,"potted plant"\n')
    folder = VocFolder(root, ("potted plant", "dog"))
    assert as_lists(read_tags(folder, "train", path)) == {"b": [1, 1], "a": [1, 0]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"my\.csv:1: wanted the header"),
        ("a,cat\n", r"my\.csv:1: wanted the header 'image,tags', got 'a,cat'"),
        ("image,tags\na,cat\nb,lion\n", r"my\.csv:3: unknown class 'lion'; known are cat, dog, owl"),
        ("image,tags\nzzz,cat\n", r"my\.csv:2: the folder has no image 'zzz'"),
        ("image,tags\n../a,cat\n", r"my\.csv:2: wanted a plain name"),
        ("image,tags\na,cat\na.png,cat\n", r"my\.csv:3: image 'a' occurs twice"),
        ("image,tags\na,cat\n", r"my\.csv: 1 of 2 images have no line, the first is 'b'"),
        ("image,tags\na,cat,dog\n", r"my\.csv:2: wanted 2 fields, got 3"),
        ('image,tags\na,"cat\n', r"my\.csv:2: "),
    ],
)
def test_malformed_csv_is_a_named_error(root: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "my.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_tags(VocFolder(root), "train", tmp_path / "my.csv")


def test_missing_csv_and_unknown_source_are_named_errors(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.csv: cannot read"):
        read_tags(VocFolder(root), "train", tmp_path / "absent.csv")
    with pytest.raises(DataError, match=r"wanted 'main', 'masks', 'auto' or a \.csv file, got 'guess'"):
        read_tags(VocFolder(root), "train", "guess")


def test_auto_prefers_main_then_csv_then_masks(root: Path) -> None:
    folder = VocFolder(root)
    assert as_lists(read_tags(folder, "train", progress=False))["a"] == [1, 0, 0]
    (root / "tags.csv").write_text("image,tags\na,owl\nb,owl\n")
    assert as_lists(read_tags(folder, "train"))["a"] == [0, 0, 1]
    write_main(root, "train", MAIN)
    assert as_lists(read_tags(folder, "train"))["a"] == [1, -1, 0]
    (root / "ImageSets/Main/owl_train.txt").unlink()
    with pytest.raises(DataError, match="owl"):
        read_tags(folder, "train")


def many(*groups: tuple[str, int, list[int]]) -> dict[str, np.ndarray]:
    return {f"{name}{n:02d}": np.array(vector, np.int8) for name, count, vector in groups for n in range(count)}


TAGS = many(("c", 30, [1, 0, 0]), ("cd", 6, [1, 1, 0]), ("d", 9, [0, 1, 0]), ("o", 4, [0, 0, 1]), ("co", 2, [1, 0, 1]))


def test_few_takes_k_images_for_each_class() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = choose_few(TAGS, ("cat", "dog", "owl"), 6)
    assert len(chosen) == len(set(chosen)) == 18
    assert {name for name in chosen if TAGS[name][2]} == {name for name in TAGS if TAGS[name][2]}  # rarest: all six
    counts = sum(TAGS[name].astype(int) for name in chosen)
    assert (counts >= 6).all()


@pytest.mark.parametrize("rare", [0, 1])
def test_few_serves_the_rarest_class_first(rare: int) -> None:
    """Else the common class may take the one image that holds the rare one."""
    common = [int(number != rare) for number in range(2)]
    few = {name: np.array(vector, np.int8) for name, vector in (("a", [1, 1]), ("b", common), ("c", common))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {tuple(choose_few(few, ("cat", "dog"), 1, seed)) for seed in range(21)}
    assert found == {("a", "b"), ("a", "c")}


def test_few_counts_an_image_only_for_the_class_it_was_taken_for() -> None:
    both = many(("x", 10, [1, 1]), ("y", 10, [1, 0]))
    assert len(choose_few(both, ("cat", "dog"), 5)) == 10


def test_few_is_the_same_on_every_machine_and_for_every_order_of_the_tags() -> None:
    chosen = choose_few(TAGS, ("cat", "dog", "owl"), 2, seed=7)
    assert chosen == ["c06", "cd01", "co00", "co01", "d05", "o02"]
    assert choose_few(dict(reversed(TAGS.items())), ("cat", "dog", "owl"), 2, seed=7) == chosen
    assert choose_few(TAGS, ("cat", "dog", "owl"), 2, seed=8) != chosen


def test_few_takes_all_and_warns_where_a_class_runs_short() -> None:
    with pytest.warns(UserWarning, match=r"wanted 10 masked images for each .* 'owl' 6 \(of 6 that hold it\)"):
        chosen = choose_few(TAGS, ("cat", "dog", "owl"), 10)
    assert len(chosen) == 26


def test_few_names_all_short_classes_in_one_warning_at_the_caller(root: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        choose_few(TAGS, ("cat", "dog", "owl"), 100)
        few_masks(VocFolder(root), "train", 9, progress=False)
    assert len(caught) == 2
    assert all(f"'{name}' " in str(warning.message) for warning in caught for name in ("cat", "dog", "owl"))
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize(("k", "seed", "message"), [(0, 0, "k: wanted"), (-1, 0, "k: wanted"), (1, -1, "seed: wanted")])
def test_few_refuses_senseless_numbers(k: int, seed: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        choose_few(TAGS, ("cat", "dog", "owl"), k, seed)


def test_few_masks_reads_the_masks_of_a_split(root: Path) -> None:
    folder = VocFolder(root)
    with pytest.warns(UserWarning, match="'owl' 0"):
        assert few_masks(folder, "train", 1, progress=False) == ["a", "b"]
    (root / "ImageSets/Segmentation/empty.txt").write_text("d\n")
    with pytest.warns(UserWarning, match="class"), pytest.raises(DataError, match="no masked image holds any class"):
        few_masks(folder, "empty", 1, progress=False)


def test_unknown_tags_are_not_taken_as_present() -> None:
    with pytest.warns(UserWarning, match="'dog' 0 "):
        assert choose_few(many(("x", 3, [1, -1])), ("cat", "dog"), 2) != []
    assert tags.UNKNOWN == -1
