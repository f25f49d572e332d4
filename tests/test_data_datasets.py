from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from voc_writer import mask_of, save_grey, write_voc

from ddn_fast import distributed
from ddn_fast.data import (
    ClassificationItems,
    ImageStore,
    SegmentationItems,
    VocFolder,
    WindowItem,
    build_items,
    classification_item,
    read_tags,
    segmentation_item,
)
from ddn_fast.data.datasets import cache_bytes_of_each
from ddn_fast.errors import DataError, InputError

Sample = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> VocFolder:
    return VocFolder(write_voc(tmp_path / "voc", {"a": [1], "b": [2, 3], "c": [1, 2, 3], "d": [3]}))


def segmentation(folder: VocFolder, **options) -> SegmentationItems:
    items = build_items(folder, folder.ids("all"), windows_per_subset=1, progress=False)
    return SegmentationItems(folder.root, items, 3, **{"new_side": 20, "side": 16, **options})


def classification(folder: VocFolder, **options) -> ClassificationItems:
    tags = read_tags(folder, "all", "masks", progress=False)
    return ClassificationItems(folder, folder.ids("all"), tags, **{"new_side": 20, "side": 16, **options})


BOTH = pytest.mark.parametrize("make", [segmentation, classification])


def assert_same(a: Sample, b: Sample) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype
        assert torch.equal(a[key], b[key]), key


def test_segmentation_sample_has_the_documented_tensors(folder: VocFolder) -> None:
    dataset = segmentation(folder, augment=False, shuffle=False)
    sample = dataset[4]
    item = dataset.items[4]
    assert {key: (value.dtype, tuple(value.shape)) for key, value in sample.items()} == {
        "data": (torch.float32, (3, 16, 16)),
        "target": (torch.uint8, (16, 16)),
        "subset": (torch.float32, (3,)),
        "index": (torch.int64, ()),
    }
    assert sample["index"] == 4
    assert sample["subset"].tolist() == item.subset_vector(3).tolist()
    image, mask = folder.pair(Path(item.image).stem)
    data, target = segmentation_item(image, mask, item.window, item.subset_vector(3), new_side=20, side=16)
    np.testing.assert_array_equal(sample["data"], data)
    np.testing.assert_array_equal(sample["target"], target)


def test_classification_sample_has_the_documented_tensors(folder: VocFolder) -> None:
    sample = classification(folder, augment=False, shuffle=False)[1]
    assert {key: (value.dtype, tuple(value.shape)) for key, value in sample.items()} == {
        "data": (torch.float32, (3, 16, 16)),
        "labels": (torch.int8, (3,)),
        "index": (torch.int64, ()),
    }
    assert sample["labels"].tolist() == [0, 1, 1]
    np.testing.assert_array_equal(sample["data"], classification_item(folder.image("b"), new_side=20, side=16))


def test_unknown_tags_reach_the_sample(folder: VocFolder) -> None:
    tags = {image_id: np.array([1, -1, 0], np.int8) for image_id in folder.ids("all")}
    sample = ClassificationItems(folder, ["a"], tags, new_side=20, side=16)[0]
    assert sample["labels"].tolist() == [1, -1, 0]


def test_labels_are_the_callers_to_change(folder: VocFolder) -> None:
    tags = {image_id: np.array([1, 0, -1], np.int8) for image_id in folder.ids("all")}
    dataset = ClassificationItems(folder, ["a", "b"], tags, new_side=20, side=16, shuffle=False)
    dataset[0]["labels"].fill_(7)
    tags["b"][:] = 7
    assert [dataset[n]["labels"].tolist() for n in (0, 1)] == [[1, 0, -1]] * 2


@BOTH
def test_every_epoch_is_another_permutation(folder: VocFolder, make) -> None:
    count = len(make(folder))
    dataset = make(folder, samples=3 * count)
    orders = [[dataset.item_index(epoch * count + n) for n in range(count)] for epoch in range(3)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert orders[0] != orders[1] or orders[1] != orders[2]
    assert [make(folder, samples=3 * count).item_index(n) for n in range(2 * count, 3 * count)] == orders[2]
    assert make(folder, shuffle=False, samples=9 * count).item_index(5 * count + 1) == 1


@BOTH
def test_sample_n_is_the_same_alone_as_in_a_run(folder: VocFolder, make) -> None:
    run = make(folder, samples=40, seed=5)
    samples = [run[n] for n in range(40)]
    for n in (33, 0, 39, 17):
        assert_same(make(folder, samples=50, seed=5)[n], samples[n])
        assert_same(run[n], samples[n])
    other = make(folder, samples=40, seed=6)
    assert any(not torch.equal(other[n]["data"], samples[n]["data"]) for n in range(40))


@BOTH
def test_augmentation_differs_between_epochs(folder: VocFolder, make) -> None:
    dataset = make(folder, samples=400, shuffle=False)
    count = dataset.count
    views = {dataset[n]["data"].numpy().tobytes() for n in range(0, 10 * count, count)}
    assert len(views) > 3
    fixed = make(folder, samples=400, shuffle=False, augment=False)
    assert len({fixed[n]["data"].numpy().tobytes() for n in range(0, 10 * count, count)}) == 1


def test_jitter_changes_the_window_but_not_other_random_numbers_of_the_run(folder: VocFolder) -> None:
    plain, jittered = classification(folder), classification(folder, scale=(0.4, 0.9), max_aspect=1.3)
    assert [plain[n]["index"] for n in range(4)] == [jittered[n]["index"] for n in range(4)]
    assert all(not torch.equal(plain[n]["data"], jittered[n]["data"]) for n in range(4))


@BOTH
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_and_resume_change_no_sample(folder: VocFolder, make, context: str) -> None:
    dataset = make(folder, samples=16, cache_bytes=1 << 20)
    cv2.resize(np.zeros((900, 900, 3), np.uint8), (700, 700))  # starts OpenCV's threads, which a fork does not inherit
    expected = list(DataLoader(dataset, batch_size=4))
    start = 8
    loader = DataLoader(
        dataset,
        batch_size=4,
        sampler=range(start, len(dataset)),
        num_workers=2 if context == "fork" else 1,
        multiprocessing_context=context,
        timeout=60,
    )
    resumed = list(loader)
    assert len(resumed) == 2
    for a, b in zip(resumed, expected[start // 4 :], strict=True):
        assert_same(a, b)


@BOTH
def test_pickle_leaves_decoded_images_behind(folder: VocFolder, make) -> None:
    dataset = make(folder, cache_bytes=1 << 24)
    before = len(pickle.dumps(dataset))
    first = dataset[0]
    assert dataset.store._kept
    data = pickle.dumps(dataset)
    assert len(data) < before + 200
    assert_same(pickle.loads(data)[0], first)


def test_store_keeps_to_its_bound_and_serves_kept_images_without_the_file(folder: VocFolder) -> None:
    path = {name: folder.image_path(name) for name in "abc"}
    nbytes = 24 * 32 * 3
    store = ImageStore(2 * nbytes + 100)
    kept = {name: store.image(path[name]) for name in "abc"}
    for name in "abc":
        path[name].unlink()
    assert store.image(path["a"]) is kept["a"]
    assert store.image(path["b"]) is kept["b"]
    with pytest.raises(Exception, match=r"c\.png"):
        store.image(path["c"])
    with pytest.raises(ValueError, match="read-only"):
        kept["a"][0, 0, 0] = 1


@BOTH
def test_cache_changes_no_sample(folder: VocFolder, make) -> None:
    plain, cached = make(folder, samples=30), make(folder, samples=30, cache_bytes=1 << 20)
    for n in range(30):
        assert_same(plain[n], cached[n])


@BOTH
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_image_is_an_error_that_names_it_and_its_sample(folder: VocFolder, make, workers: int) -> None:
    dataset = make(folder, shuffle=False)
    folder.image_path("a").write_bytes(folder.image_path("a").read_bytes()[:500])
    with pytest.raises(DataError, match=r"sample 0, item 0 \(.*a\.png\)"):
        list(DataLoader(dataset, num_workers=workers, multiprocessing_context="fork" if workers else None))


def test_bad_mask_is_an_error_that_names_it(folder: VocFolder) -> None:
    dataset = segmentation(folder, shuffle=False)
    save_grey(mask_of([1], (24, 33)), folder.root / "SegmentationClass/a.png")
    with pytest.raises(DataError, match=r"SegmentationClass/a\.png: the mask is 33x24"):
        dataset[0]
    save_grey(mask_of([77]), folder.root / "SegmentationClass/a.png")
    with pytest.raises(DataError, match=r"SegmentationClass/a\.png.*77"):
        dataset[0]
    (folder.root / "SegmentationClass/a.png").unlink()
    with pytest.raises(DataError, match=r"SegmentationClass/a\.png"):
        dataset[0]


@BOTH
@pytest.mark.parametrize(
    ("wrong", "message"), [({"seed": -1}, "seed"), ({"side": 21}, "side <= new_side"), ({"samples": 0}, "samples")]
)
def test_senseless_options_are_named_errors(folder: VocFolder, make, wrong: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(folder, **wrong)


@pytest.mark.parametrize("wrong", [{"scale": (0, 1)}, {"scale": (1, 0.5)}, {"scale": (1, 3)}, {"max_aspect": 0.5}])
def test_senseless_jitter_is_a_named_error(folder: VocFolder, wrong) -> None:
    with pytest.raises(DataError, match="scale, max_aspect"):
        classification(folder, **wrong)


def test_items_that_do_not_fit_the_classes_are_named_errors(folder: VocFolder) -> None:
    with pytest.raises(DataError, match="wanted at least one"):
        SegmentationItems(folder.root, [], 3)
    with pytest.raises(DataError, match=r"item 0: wanted classes 0 to 1, got \(2,\)"):
        SegmentationItems(folder.root, [WindowItem("i", "m", (0, 0, 1, 1), (2,))], 2)
    tags = {"a": np.zeros(3, np.int8)}
    with pytest.raises(DataError, match="1 of 2 images have none, the first is 'b'"):
        ClassificationItems(folder, ["a", "b"], tags)
    with pytest.raises(DataError, match="wanted 3 for each image"):
        ClassificationItems(folder, ["a"], {"a": np.zeros(2, np.int8)})


@BOTH
def test_sample_outside_the_run_is_an_index_error(folder: VocFolder, make) -> None:
    dataset = make(folder, samples=5)
    assert len(dataset) == 5
    for n in (-1, 5):
        with pytest.raises(IndexError):
            dataset[n]
    assert len(list(dataset)) == 5


def test_memory_for_images_is_shared_out_among_the_stores_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_bytes_of_each(2, 4) == 2**29
    assert cache_bytes_of_each(2, 0) == 2**31
    assert cache_bytes_of_each(0, 1) == 0
    monkeypatch.setattr(distributed, "local_size", lambda: 8)
    assert cache_bytes_of_each(2, 4) == 2**26
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="cache: wanted 0 gigabytes or more"):
            cache_bytes_of_each(wrong, 1)
