"""Figures from confusion matrices and rankings, and the run over a dataset folder."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_net import CLASSES, random_image, tiny_net, write_image

from ddn_fast.data.voc import VocFolder
from ddn_fast.errors import DataError, ImageError, InputError
from ddn_fast.evaluate import (
    Counts,
    Evaluation,
    average_precision,
    confusion,
    count,
    evaluate,
    intersection_over_union,
)
from ddn_fast.images import save_mask
from ddn_fast.network import DecoupledNet


@pytest.fixture(scope="module")
def net() -> DecoupledNet:
    """In float64, so that rounding, which depends on the batch, decides no pixel."""
    return tiny_net(dtype=torch.float64)


def voc_folder(root: Path, masks: list[np.ndarray]) -> Path:
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    for k, mask in enumerate(masks):
        write_image(root / f"JPEGImages/{k}.png", k, *mask.shape)
        save_mask(mask, root / f"SegmentationClass/{k}.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("".join(f"{k}\n" for k in range(len(masks))))
    (root / "ImageSets/Segmentation/none.txt").write_text("")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def random_mask(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([0, 0, 1, 3, 4, 255], np.uint8), (height, width))


def test_confusion_counts_pixels_truth_down_prediction_across():
    truth = np.array([[0, 1, 2], [2, 255, 255]], np.uint8)
    prediction = np.array([[0, 0, 2], [1, 1, 0]], np.uint8)
    assert confusion(truth, prediction, 2).tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]
    assert confusion(truth, prediction, 2).dtype == np.int64


def test_confusion_is_that_of_a_slow_loop_and_adds_up():
    rng = np.random.default_rng(0)
    total, expected = np.zeros((5, 5), np.int64), np.zeros((5, 5), np.int64)
    for size in (1, 7, 30):
        truth = rng.choice(np.array([0, 1, 2, 3, 4, 255], np.uint8), (size, size + 1))
        prediction = rng.integers(0, 5, (size + 1, size), np.uint8).T
        total += confusion(truth, prediction, 4)
        for t, p in zip(truth.ravel(), prediction.ravel(), strict=True):
            if t != 255:
                expected[t, p] += 1
    assert np.array_equal(total, expected)


def test_iu_of_a_known_matrix_and_of_an_absent_class():
    matrix = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    iu = intersection_over_union(matrix)
    assert iu[:2].tolist() == [6 / 9, 3 / 6]
    assert np.isnan(iu[2])
    result = Evaluation(("a", "b"), matrix, np.array([1.0, np.nan]), 3, "identified", 0.5)
    assert result.mean_iu == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert result.pixel_accuracy == pytest.approx(9 / 12)
    assert result.absent == ("b",)
    assert "b" in result.table().splitlines()[-1]


def test_a_class_only_predicted_counts_as_zero():
    iu = intersection_over_union(confusion(np.zeros((1, 2), np.uint8), np.array([[0, 1]], np.uint8), 1))
    assert iu.tolist() == [0.5, 0.0]


@pytest.mark.parametrize(
    ("truth", "prediction"),
    [
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8)),
        (np.full((1, 1), 3, np.uint8), np.zeros((1, 1), np.uint8)),
        (np.zeros((1, 1), np.uint8), np.full((1, 1), 255, np.uint8)),
    ],
)
def test_masks_that_cannot_be_compared_are_named_errors(truth, prediction):
    with pytest.raises(DataError, match="confusion: "):
        confusion(truth, prediction, 2)


def test_average_precision_of_known_rankings():
    def ap(scores: list[float], truth: list[int]) -> float:
        return average_precision(np.array(scores), np.array(truth, bool))

    assert ap([0.9, 0.8, 0.1], [1, 1, 0]) == 1.0
    assert ap([0.9, 0.8, 0.1], [0, 0, 1]) == pytest.approx(1 / 3)
    assert ap([0.9, 0.8, 0.7, 0.6], [1, 0, 0, 1]) == pytest.approx(0.5 + 0.5 * 0.5)
    # the precision at the second positive (2 of 3) beats that at the first (1 of 2)
    assert ap([0.9, 0.8, 0.7], [0, 1, 1]) == pytest.approx(2 / 3)
    assert np.isnan(ap([0.9], [0]))


def test_average_precision_does_not_depend_on_the_order_of_equal_scores():
    truth = np.array([1, 0, 0, 1, 0, 1], bool)
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 1, 5, 0, 2, 4]):
        assert average_precision(np.full(6, 0.5), truth[order]) == 0.5


def test_the_run_over_a_folder_is_the_sum_over_its_images(net, tmp_path):
    masks = [random_mask(seed, 20 + seed, 33) for seed in range(5)]
    folder = VocFolder(voc_folder(tmp_path, masks))
    result = evaluate(net, folder, "val", batch_size=2)
    matrix = np.zeros((7, 7), np.int64)
    for k, mask in enumerate(masks):
        matrix += confusion(mask, net.segment(tmp_path / f"JPEGImages/{k}.png")[0].mask, 6)
    assert np.array_equal(result.confusion, matrix)
    assert result.images == 5
    assert np.array_equal(evaluate(net, zip_pairs(masks), labels="identified").confusion, matrix)


def zip_pairs(masks: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(random_image(k, *mask.shape), mask) for k, mask in enumerate(masks)]


def test_parts_of_a_folder_put_together_are_the_folder(net, tmp_path):
    folder = VocFolder(voc_folder(tmp_path / "voc", [random_mask(k, 50, 40) for k in range(5)]))
    wanted = evaluate(net, folder, "val")
    parts = [count(net, folder, "val", part=(k, 3)) for k in range(3)]
    assert [len(part.scores) for part in parts] == [2, 2, 1]
    tables = (np.concatenate([getattr(part, name) for part in parts]) for name in ("scores", "shown"))
    got = Counts(sum(part.confusion for part in parts), *tables).figures(net.config.classes)
    assert got.to_dict() == wanted.to_dict()
    assert len(count(net, folder, "val", part=(7, 8)).scores) == 0
    with pytest.raises(DataError, match="at least one image"):
        count(net, folder, "val", part=(7, 8)).figures(net.config.classes)


def test_truth_labels_segment_what_the_masks_show(net):
    masks = [random_mask(1, 30, 30), np.zeros((20, 20), np.uint8), np.full((9, 9), 255, np.uint8)]
    result = evaluate(net, iter(zip_pairs(masks)), labels="truth", batch_size=1)
    only = net.segment(random_image(0, 30, 30), ["ant", "cow", "dog"])[0].mask
    expected = confusion(masks[0], only, 6)
    expected[0, 0] += 400
    assert np.array_equal(result.confusion, expected)


@pytest.mark.parametrize("labels", ["identified", "truth"])
def test_only_the_masks_decoded_ahead_are_held(net, labels):
    masks: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for seed in range(40):
            mask = random_mask(seed, 9, 9)
            masks.append(weakref.ref(mask))
            alive.append(sum(reference() is not None for reference in masks))
            yield random_image(seed, 9, 9), mask

    assert evaluate(net, pairs(), labels=labels, batch_size=2).images == 40
    assert max(alive) <= 12


def test_average_precision_ranks_the_images_by_score(net):
    pairs = zip_pairs([random_mask(seed, 25, 25) for seed in range(4)])
    pairs[1][1][pairs[1][1] == 1] = 0
    scores = np.array([result.scores[0] for result in net.segment([image for image, _ in pairs])])
    result = evaluate(net, pairs)
    assert result.average_precision[0] == pytest.approx(average_precision(scores, np.array([1, 0, 1, 1], bool)))
    assert np.isnan(result.average_precision[1])


def test_result_is_json_without_nan_and_a_table(net):
    result = evaluate(net, zip_pairs([random_mask(0, 12, 12)]), threshold=np.float32(0.5))
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["threshold"] == 0.5
    assert values["average_precision"]["bee"] is None
    assert list(values["iu"]) == ["background", *CLASSES]
    assert values["mean_iu"] == pytest.approx(result.mean_iu)
    lines = result.table().splitlines()
    assert len({len(line) for line in lines[: len(CLASSES) + 3]}) == 1


def test_wrong_datasets_are_named_errors(net, tmp_path):
    good = random_mask(0, 12, 12)
    for pairs, message in [
        ([], "at least one image"),
        ([(random_image(0, 12, 12), random_mask(0, 12, 13))], "wanted a mask of its size"),
        ([(random_image(0, 12, 12), np.full((12, 12), 9, np.uint8))], "labels 0 to 6"),
        ([(random_image(0, 12, 12), good.astype(np.int64))], "HxW uint8"),
        ([(random_image(0, 12, 12), tmp_path / "none.png")], "no such file"),
    ]:
        with pytest.raises(DataError, match=message):
            evaluate(net, pairs)
    with pytest.raises(ImageError, match="no such file"):
        evaluate(net, [(tmp_path / "none.jpg", good)])


def test_what_is_no_list_of_pairs_is_a_named_error(net):
    image = random_image(0, 12, 12)
    for data, message in (
        ("VOC", r"data: wanted a dataset folder or \(image, mask\) pairs, got str"),
        ([image], r"data: wanted \(image, mask\) pairs, got ndarray among them"),
        ([7], r"data: wanted \(image, mask\) pairs, got int among them"),
        ([(image, image, image)], r"data: wanted \(image, mask\) pairs, got tuple among them"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(net, data)
    with pytest.raises(DataError, match="wanted a mask HxW uint8, got list"):
        evaluate(net, [(image, [[0]])])


def test_an_error_that_is_kept_keeps_no_threads(net):
    pairs = [(random_image(k, 12, 12), random_mask(0, 12, 13)) for k in range(4)]
    evaluate(net, [(random_image(0, 9, 9), random_mask(0, 9, 9))], progress=True)  # begins a thread of tqdm's own
    before = set(threading.enumerate())
    with pytest.raises(DataError, match="wanted a mask of its size") as error:
        evaluate(net, pairs, batch_size=1, progress=True)
    assert set(threading.enumerate()) <= before
    assert error.traceback


def test_wrong_arguments_are_named_errors(net, tmp_path):
    folder = VocFolder(voc_folder(tmp_path, [random_mask(0, 12, 12)]))
    with pytest.raises(InputError, match="split"):
        evaluate(net, folder)
    with pytest.raises(InputError, match="split"):
        evaluate(net, [], "val")
    with pytest.raises(InputError, match="labels"):
        evaluate(net, folder, "val", labels="guess")
    with pytest.raises(DataError, match="empty"):
        evaluate(net, folder, "none")
    with pytest.raises(DataError, match="classes"):
        evaluate(net, VocFolder(tmp_path, classes=("x", "y", "z", "u", "v", "w")), "val")
