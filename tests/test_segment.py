"""segment() against a slow float64 implementation of SPEC 7 that runs 2 + |A| passes, and against every wrong input."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from slow_resize import slow_imresize_axis
from tiny_net import CLASSES, random_image, tiny_net, write_image

from ddn_fast import FastDecoupledNet, images, ops, reference, segmentation
from ddn_fast.config import MEAN_BGR
from ddn_fast.errors import ImageError, InputError, NumericsError
from ddn_fast.images import voc_palette
from ddn_fast.network import DecoupledNet
from ddn_fast.reference import merge_scores, pixel_scores
from ddn_fast.weights import load, save

GOLDEN = Path(__file__).parent / "golden"
SHAPES = [(60, 60), (37, 50), (80, 41), (64, 64), (33, 3), (1, 1)]


@pytest.fixture(scope="module")
def net() -> DecoupledNet:
    """In float64, so that rounding, which depends on the batch, decides no pixel."""
    return tiny_net(dtype=torch.float64)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [random_image(seed, *shape) for seed, shape in enumerate(SHAPES)]


def slow_resize(plane: np.ndarray, side: int) -> np.ndarray:
    return slow_imresize_axis(slow_imresize_axis(plane, side, True).T, side, True).T


def slow_segment(
    net: DecoupledNet, image: np.ndarray, chosen: list[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """SPEC section 7 as the release runs it, float64: a mask and the gap between the two best scores at each pixel."""
    height, width = image.shape[:2]
    square, side = max(height, width), net.config.side
    padded = np.zeros((square, square, 3))
    padded[:height, :width] = image
    rows = slow_imresize_axis(padded, side, False)
    x = (
        slow_imresize_axis(rows.transpose(1, 0, 2), side, False).transpose(2, 1, 0)[::-1]
        - np.array(MEAN_BGR)[:, None, None]
    )
    x = torch.from_numpy(x.copy())[None]
    with torch.no_grad():
        s = net.classify(x)[0]  # the first of the 2 + |A| runs
        labels = [k for k in range(len(s)) if s[k] > 0.5] if chosen is None else chosen
        if not labels:
            return np.zeros((height, width), np.uint8), np.ones((height, width))

        def softmax_of_pass(classes: list[int]) -> np.ndarray:
            y = torch.zeros_like(s)
            y[classes] = s[classes]
            return net(x, y[None], torch.tensor([0]))[0].softmax(0).numpy()

        planes = [softmax_of_pass(labels)[0]] + [softmax_of_pass([k])[1] for k in labels]
    total = sum(planes)
    planes = [np.where(total <= 0, plane + 1, plane) for plane in planes]
    total = sum(planes)
    resized = np.stack([slow_resize(plane / total, square)[:height, :width] for plane in planes])
    gap = np.diff(np.sort(resized, 0)[-2:], axis=0)[0]
    return np.array([0, *(k + 1 for k in labels)], np.uint8)[resized.argmax(0)], gap


def test_masks_are_those_of_the_slow_formula_in_float64(net, pictures):
    seen = set()
    for image in pictures:
        (result,) = net.segment([image])
        # the input is rounded to float32 on its way, as the network's users give it
        expected, gap = slow_segment(net, image)
        seen.add(len(result.labels))
        assert result.mask.shape == image.shape[:2]
        differs = result.mask != expected
        assert not (differs & (gap > 1e-5)).any()
        assert differs.mean() < 0.002
    assert len(seen) > 1, "the cases should need different numbers of passes"


def test_masks_in_float32_differ_only_where_the_two_best_nearly_tie(net, pictures):
    for image, result in zip(pictures, tiny_net().segment(pictures), strict=True):
        expected, gap = slow_segment(net, image)
        differs = result.mask != expected
        assert not (differs & (gap > 2e-3)).any()
        assert differs.mean() < 0.01


@pytest.mark.parametrize("names", [["dog"], ["fox", "ant"], ["elk", "dog", "bee"]])
def test_named_labels_replace_the_identified_ones_with_their_own_scores(net, pictures, names):
    chosen = sorted(CLASSES.index(name) for name in names)
    result = net.segment(pictures[1], names)[0]
    expected, gap = slow_segment(net, pictures[1], chosen)
    assert not ((result.mask != expected) & (gap > 1e-5)).any()
    assert [label.name for label in result.labels] == [CLASSES[k] for k in chosen]
    assert [label.score for label in result.labels] == pytest.approx([result.scores[k] for k in chosen])


def test_golden_label_maps_of_the_release():
    cases = np.load(GOLDEN / "cases.npz")
    net = load(GOLDEN / "tiny_a.caffemodel")
    x = torch.from_numpy(cases["input"])
    for image in range(len(x)):
        passes = [
            p for p in range(len(cases["pass_y"])) if cases["pass_image"][p] == image and cases["pass_kind"][p] < 2
        ]
        passes.sort(key=lambda p: (cases["pass_kind"][p], cases["pass_label"][p]))
        labels = torch.from_numpy(cases["pass_y"][passes])
        classes = [int(cases["pass_label"][p]) for p in passes[1:]]
        assert classes == (cases["cls-score-avg-sigmoid"][image] > 0.5).nonzero()[0].tolist()
        with torch.inference_mode():
            _, state = net.score_images(x[image : image + 1])
            difference = net.score_passes(state, labels, torch.zeros(len(labels), dtype=torch.int64))
            merged = merge_scores(difference, len(classes), 320, (320, 320)).numpy()
        ours = np.array([0, *(k + 1 for k in classes)], np.uint8)[merged]
        # the goldens are float32: a pixel whose two best scores lie within their noise may fall either way
        best = pixel_scores(difference, len(classes)).sort(0).values[-2:].numpy()
        differs = ours != cases["segmask_320"][image]
        assert differs.mean() < 1e-3
        assert not (differs & (best[1] - best[0] > 1e-3)).any()


def test_merge_scores_is_the_plain_formula_on_random_passes():
    generator = torch.Generator().manual_seed(0)
    for classes, side, square, crop in [(1, 8, 11, (11, 7)), (3, 8, 5, (2, 5)), (4, 6, 6, (6, 6)), (2, 7, 30, (1, 30))]:
        passes = 1 if classes == 1 else classes + 1
        d = 4 * torch.randn(passes, side, side, generator=generator, dtype=torch.float64)
        planes = [1 / (1 + np.exp(d[0].numpy()))] + [
            1 / (1 + np.exp(-plane.numpy())) for plane in d[passes - classes :]
        ]
        scores = np.stack([slow_resize(plane / sum(planes), square)[: crop[0], : crop[1]] for plane in planes])
        assert np.array_equal(merge_scores(d, classes, square, crop).numpy(), scores.argmax(0))


def test_where_every_score_is_zero_all_get_one_and_background_wins():
    d = torch.tensor([[1000.0, 1000.0], [-1000.0, 3.0]]).expand(3, 2, 2).clone()
    d[1:, 0] = -1000.0  # background sure to be absent, and so is every class
    scores = pixel_scores(d, 2)
    assert torch.equal(scores[:, 0, 0], torch.full((3,), 1 / 3))
    torch.testing.assert_close(scores.sum(0), torch.ones(2, 2))
    assert merge_scores(d, 2, 2, (2, 2))[0].tolist() == [0, 0]
    d[0, 0] = 50.0  # 2e-22 is not nothing: the one score that is left takes all
    assert pixel_scores(d, 2)[:, 0, 0].tolist() == [1.0, 0.0, 0.0]


def test_batches_passes_and_streams_give_the_labels_of_one_by_one(net, pictures, monkeypatch):
    alone = [net.segment(image)[0] for image in pictures]
    for batch_size, max_passes in [(1, 16), (2, 3), (6, 1), (100, 7)]:
        monkeypatch.setattr(segmentation, "MAX_PASSES", max_passes)
        for one, many in zip(alone, net.segment(pictures, batch_size=batch_size), strict=True):
            assert np.array_equal(one.mask, many.mask)
            assert [label.name for label in one.labels] == [label.name for label in many.labels]
    for one, streamed in zip(alone, net.segment_iter(iter(pictures)), strict=True):
        assert np.array_equal(one.mask, streamed.mask)


def test_no_more_passes_run_than_identity_4_needs(net, pictures, monkeypatch):
    ran: list[int] = []
    score_passes = net.score_passes
    monkeypatch.setattr(net, "score_passes", lambda *args: ran.append(len(args[1])) or score_passes(*args))
    results = net.segment(pictures[:3], [[], ["dog"], ["dog", "fox"]])
    assert sum(ran) == 0 + 1 + 3
    assert [len(result.labels) for result in results] == [0, 1, 2]
    assert not results[0].mask.any()


def test_no_class_identified_is_a_valid_background_mask(net, pictures):
    (result,) = net.segment(pictures[1], threshold=1.0)
    assert result.labels == ()
    assert result.mask.shape == (37, 50)
    assert not result.mask.any()
    assert np.isfinite(result.scores).all()
    assert np.array_equal(result.overlay(), pictures[1])


def test_a_path_and_its_array_give_the_same(net, tmp_path):
    path = write_image(tmp_path / "a.png", 3, 45, 52)
    by_path, by_string, by_array = net.segment([path, str(path), random_image(3, 45, 52)])
    assert np.array_equal(by_path.mask, by_array.mask)
    assert np.array_equal(by_string.mask, by_array.mask)
    assert np.array_equal(by_path.overlay(), by_array.overlay())
    assert len(net.segment(path)) == len(net.segment(str(path))) == 1


def test_four_dimensional_array_is_a_list_of_images(net):
    stack = np.stack([random_image(seed, 20, 30) for seed in range(3)])
    assert [result.mask.shape for result in net.segment(stack)] == [(20, 30)] * 3


def test_no_images_give_no_results(net):
    assert net.segment([]) == []
    assert net.segment([], []) == []
    assert net.segment([], ["dog"]) == []
    assert list(net.segment_iter(iter(()))) == []


def test_a_tall_strip_needs_no_square_of_memory(net):
    (result,) = net.segment(np.zeros((60_000, 1, 3), np.uint8), ["dog"])
    assert result.mask.shape == (60_000, 1)


def test_every_submodules_mode_is_as_before(net, pictures):
    part = net.decoder.deconv1_1_bn
    part.train()
    expected = tiny_net(dtype=torch.float64).segment(pictures[0])[0].mask
    try:
        assert np.array_equal(net.segment(pictures[0])[0].mask, expected)
        assert part.training
        assert not net.training
        with pytest.raises(InputError):
            net.segment([pictures[0], "x"], ["cat"])
        assert part.training
    finally:
        net.eval()


def test_results_carry_no_gradient_and_leave_autograd_usable(pictures):
    net = tiny_net()
    net.segment(pictures[0])
    x = net.network_input(pictures[0])[None].requires_grad_()
    net(x, torch.ones(1, 6), torch.tensor([0])).sum().backward()
    assert x.grad is not None


def test_bfloat16_weights_work(pictures):
    wide = tiny_net().segment(pictures[0], ["ant", "bee"])[0]
    narrow = tiny_net(dtype=torch.bfloat16).segment(pictures[0], ["ant", "bee"])[0]
    assert narrow.scores.dtype == np.float32
    assert (wide.mask == narrow.mask).mean() > 0.5


# --- wrong input ---


def bad_images(folder: Path) -> dict[str, object]:
    """Every kind of bad image by name."""
    truncated = folder / "truncated.png"
    whole = write_image(folder / "whole.png", 1, 50, 50).read_bytes()
    truncated.write_bytes(whole[: len(whole) // 2])
    Image.new("L", (images.MAX_SIDE + 1, 1)).save(folder / "huge.png")
    return {
        "missing": folder / "missing.png",
        "truncated": truncated,
        "huge": folder / "huge.png",
        "float": np.zeros((5, 5, 3)),
        "rgba": np.zeros((5, 5, 4), np.uint8),
        "empty": np.zeros((0, 5, 3), np.uint8),
        "tensor": torch.zeros(3, 5, 5),
        "number": 7,
    }


KINDS = ("missing", "truncated", "huge", "float", "rgba", "empty", "tensor", "number")


@pytest.mark.parametrize("kind", KINDS)
def test_bad_image_is_a_named_error(net, tmp_path, kind):
    with pytest.raises(ImageError, match=r"wanted|no such file|cannot be read"):
        net.segment([bad_images(tmp_path)[kind]])


def test_bad_images_never_end_a_batch_when_kept(net, tmp_path, pictures):
    bad = bad_images(tmp_path)
    mixed = [pictures[0], *bad.values(), pictures[1]]
    results = net.segment(mixed, on_error="keep", batch_size=3)
    assert [result.error is None for result in results] == [True] + [False] * len(bad) + [True]
    assert np.array_equal(results[0].mask, net.segment(pictures[0])[0].mask)
    assert np.array_equal(results[-1].mask, net.segment(pictures[1])[0].mask)
    failed = results[1]
    assert failed.mask.size == 0
    assert failed.labels == ()
    assert np.isnan(failed.scores).all()
    for use in (failed.overlay, lambda: failed.save_png(tmp_path / "out.png")):
        with pytest.raises(ImageError, match="no such file"):
            use()
    assert not (tmp_path / "out.png").exists()


def test_results_before_a_bad_image_come_out_of_the_stream(net, tmp_path, pictures):
    stream = net.segment_iter([pictures[0], tmp_path / "none.png", pictures[1]])
    assert next(stream).error is None
    with pytest.raises(ImageError, match="no such file"):
        next(stream)


def test_unknown_class_names_are_answered_with_the_closest(net, pictures):
    with pytest.raises(InputError, match="'fix'; did you mean fox"):
        net.segment(pictures[0], ["fix"])
    with pytest.raises(InputError, match="'zzz'; known are ant, bee"):
        net.segment(pictures[:1], [["zzz"]])


@pytest.mark.parametrize(
    "labels",
    [
        [], 3, [["dog"], "fox"], [["dog"], 3], [["dog"]], [["dog"], ["fox"], None], [[0], [1]], [0, 1],
        np.array([0, 1]), np.array(7), {("dog",), ("fox",)}, frozenset({("dog",), None}),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_named_errors_before_anything_runs(net, pictures, labels):
    with pytest.raises(InputError, match="labels"):
        net.segment_iter(pictures[:2], labels)


def test_an_array_of_names_is_a_list_of_them(net, pictures):
    for result in net.segment(pictures[:2], np.array(["fox", "dog"])):
        assert [label.name for label in result.labels] == ["dog", "fox"]
    with pytest.raises(InputError, match="got 'dog' among lists or from a stream"):
        net.segment(pictures[:1], (name for name in ["dog"]))
    with pytest.raises(InputError, match=r"got tensor\(0\) among lists or from a stream"):
        net.segment(pictures[:2], torch.tensor([0, 1]))


def test_labels_of_a_stream_must_be_as_many_as_its_images(net, pictures):
    for images_given, lists in [(2, 1), (1, 2)]:
        with pytest.raises(InputError, match="one list per image"):
            list(net.segment_iter(iter(pictures[:images_given]), iter([["dog"]] * lists)))


def test_none_among_lists_means_the_identified_labels(net, pictures):
    named, identified = net.segment(pictures[:2], [["dog"], None])
    assert [label.name for label in named.labels] == ["dog"]
    assert identified.labels == net.segment(pictures[:2])[1].labels


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": -0.1},
        {"threshold": 1.5},
        {"threshold": float("nan")},
        {"threshold": "0.5"},
        {"threshold": True},
        {"batch_size": 0},
        {"batch_size": 2.0},
        {"on_error": "ignore"},
    ],
)
def test_wrong_options_are_named_errors(net, options):
    with pytest.raises(InputError, match=next(iter(options))):
        net.segment([], **options)


def test_numbers_of_numpy_are_numbers(net):
    assert net.segment([], threshold=np.float32(0.5), batch_size=np.int64(4)) == []


@pytest.mark.parametrize(
    ("given", "got"),
    [(7, "int"), (b"JFIF", "bytes"), (io.BytesIO(), "BytesIO"), (Image.new("RGB", (9, 9)), r"Image: np\.asarray")],
)
def test_images_must_be_something_to_go_through(net, given, got):
    with pytest.raises(InputError, match=f"images: wanted paths or HxWx3 uint8 arrays, got {got}"):
        net.segment(given)


@pytest.mark.parametrize("layer", ["head.cls_score", "decoder.seg_score"])
def test_nan_weights_are_a_named_error_for_the_image(pictures, layer):
    net = tiny_net()
    with torch.no_grad():
        net.get_submodule(layer).bias.fill_(float("nan"))
    with pytest.raises(NumericsError, match="not finite"):
        net.segment(pictures[0])
    kept = net.segment(pictures[:2], ["dog"], on_error="keep")
    assert all(isinstance(result.error, NumericsError) for result in kept)


# --- results ---


def test_saved_png_is_the_mask_at_the_images_size(net, pictures, tmp_path):
    (result,) = net.segment(pictures[1])
    result.save_png(tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.array(picture), result.mask)
        assert np.array_equal(np.array(picture.convert("RGB")), voc_palette()[result.mask])
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


def test_overlay_has_a_legend_that_can_be_left_out(net):
    image = random_image(1, 200, 300)
    (result,) = net.segment(image, ["ant", "bee"])
    assert result.overlay().shape == image.shape
    assert not np.array_equal(result.overlay(), result.overlay(legend=False))


def test_overlay_of_a_file_that_has_changed_is_a_named_error(net, tmp_path):
    path = write_image(tmp_path / "a.png", 1, 30, 40)
    (result,) = net.segment(path)
    write_image(path, 1, 40, 30)
    with pytest.raises(ImageError, match=r"a\.png"):
        result.overlay()


def test_decoding_stays_a_few_batches_ahead(net, pictures):
    taken = itertools.count()
    latest = [0]

    def endless() -> object:
        while True:
            latest[0] = next(taken)
            yield pictures[0]

    stream = net.segment_iter(endless(), batch_size=2)
    for _ in range(5):
        next(stream)
    stream.close()
    assert latest[0] <= 5 + 2 * 2 + 2


def test_an_x_the_network_cannot_take_is_a_named_error():
    net = tiny_net()
    for x, message in [
        (np.zeros((1, 3, 64, 64), np.float32), r"x: wanted a tensor \[B,3,64,64\], got ndarray"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "x: wanted torch.float32 on cpu, .*, got torch.uint8 on cpu"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.float64), "got torch.float64 on cpu"),
        (torch.zeros(1, 3, 64, 64, device="meta"), "got torch.float32 on meta"),
    ]:
        with pytest.raises(InputError, match=message):
            net.classify(x)


def test_the_check_of_x_compiles_and_lets_autocast_pass():
    net, x = tiny_net(), torch.zeros(1, 3, 64, 64)
    compiled = torch.compile(net.classify, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), net.classify(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert net.classify(x).isfinite().all()


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "engine"])
def test_torchs_default_device_is_no_matter(fast: bool, tmp_path: Path, pictures: list[np.ndarray]) -> None:
    """Users set it to "cuda"; on "meta", where tensors have no values, whatever followed it would fail."""
    save(tiny_net(), tmp_path / "weights")
    model = load(tmp_path / "weights", fast=fast)
    wanted = model.segment(pictures) + model.segment(pictures, labels=CLASSES[:2])
    missing = tmp_path / "none.png"
    with torch.device("meta"):
        again = load(tmp_path / "weights", fast=fast)
        for one in (model, again):
            found = one.segment(pictures) + one.segment(pictures, labels=CLASSES[:2])
            for a, b in zip(found, wanted, strict=True):
                assert a.labels == b.labels
                assert np.array_equal(a.mask, b.mask)
            assert one.segment(missing, on_error="keep")[0].error is not None


def test_a_network_can_be_pickled_and_an_engine_says_what_to_do_instead():
    for namespace in (reference, ops):
        plain = tiny_net()
        plain.ops = namespace
        twin = pickle.loads(pickle.dumps(plain))
        assert twin.ops is namespace
        image = random_image(1, 30, 40)
        assert (twin.segment(image)[0].mask == plain.segment(image)[0].mask).all()
    engine = FastDecoupledNet(tiny_net())
    assert copy.copy(engine) is engine
    with pytest.raises(TypeError, match="load it in each process"):
        pickle.dumps(engine)
