"""Training in two and three processes equals training in one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from processes import HERE, run
from safetensors.torch import load_file
from tiny_training import read_checkpoint, read_log, tiny_recipe
from training_cases import CASES, loaded, run_case, trained_part

from ddn_fast.data.voc import VocFolder
from ddn_fast.errors import InputError
from ddn_fast.training.loop import CHECKPOINT
from ddn_fast.training.share import Share

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:class .*wanted 1 masked images", "ignore:wanted 1 masked images"),
]


class Together(NamedTuple):
    """Folders of the runs of several processes, and what each process saw."""

    size: int
    names: list[str]
    out: Path
    saw: list[dict[str, Any]]


@pytest.fixture(scope="module")
def by_one(one_thread: None, generated: VocFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case in one process."""
    out = tmp_path_factory.mktemp("one")
    for name in CASES:
        loaded.clear()
        run_case(name, generated.root, out / name)
        (out / name / "samples.json").write_text(json.dumps(loaded))
    return out


@pytest.fixture(scope="module", params=[2, 3])
def together(
    request: pytest.FixtureRequest, one_thread: None, generated: VocFolder, tmp_path_factory: pytest.TempPathFactory
) -> Together:
    """Every case in two processes, those that are cut in three, too."""
    out, saw = (tmp_path_factory.mktemp(name) for name in ("several", "saw"))
    if request.param == 2:
        run_case("masks", generated.root, out / "resumed", stop=3)
    names = list(CASES)[0 if request.param == 2 else 2 :]
    run(request.param, HERE / "training_program.py", generated.root, out, out / "resumed", saw, *names)
    return Together(request.param, names, out, [json.loads(path.read_text()) for path in sorted(saw.iterdir())])


def assert_same(wanted: Path, got: Path) -> None:
    """Weights, statistics, solver state and figures, to what the order of sums in float64 leaves open."""
    (tensors, state), (other_tensors, other_state) = read_checkpoint(wanted), read_checkpoint(got)
    ends = load_file(wanted / "weights/all.safetensors"), load_file(got / "weights/all.safetensors")
    for a, b in ((tensors, other_tensors), ends):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if not name.startswith("random/"):
                assert torch.allclose(b[name], value, rtol=1e-7, atol=1e-9), name
    metadata, other_metadata = (json.loads((path / "weights/metadata.json").read_text()) for path in (wanted, got))
    assert metadata == other_metadata
    assert state["iteration"] == other_state["iteration"]
    for entry, other in zip(read_log(wanted), read_log(got), strict=True):
        assert other == pytest.approx(entry, rel=1e-7)


def test_several_processes_end_where_one_does(by_one: Path, together: Together) -> None:
    for name in together.names:
        assert_same(by_one / name, together.out / name)


def test_layers_with_moments_of_their_own_share_them(together: Together) -> None:
    """By the compiled ops, in float32, whose rounding is all that may show."""
    wanted = trained_part(0, 5)
    parts = [load_file(together.out / f"part{rank}.safetensors") for rank in range(together.size)]
    got = parts[0] | {"scores": torch.cat([part["scores"] for part in parts])}
    assert wanted.keys() == got.keys()
    largest = max(value.abs().max().item() for value in wanted.values())
    for name, value in wanted.items():  # the next normalisation takes some shifts away: their gradients are rounding
        assert (got[name] - value).abs().max() <= 1e-4 * value.abs().max() + 1e-6 * largest, name


def test_every_sample_is_loaded_by_one_process_and_once(by_one: Path, together: Together) -> None:
    for name in together.names:
        wanted = json.loads((by_one / name / "samples.json").read_text())
        assert sorted(sample for result in together.saw for sample in result["samples"][name]) == sorted(wanted)


@pytest.mark.parametrize("together", [2], indirect=True)
def test_a_run_goes_on_in_another_number_of_processes(by_one: Path, together: Together, generated: VocFolder) -> None:
    assert read_checkpoint(together.out / "stopped")[1]["iteration"] == 2
    run_case("masks", generated.root, together.out / "stopped", resume=True)
    for name in ("resumed", "stopped"):
        assert_same(by_one / "masks", together.out / name)


def test_the_first_process_alone_writes(together: Together) -> None:
    first, *others = [result["written"] for result in together.saw]
    assert any(CHECKPOINT in name or ".tmp" in name for name in first)
    assert [name for names in others for name in names] == []


def test_a_process_whose_pixels_are_all_void_adds_nothing_and_waits_for_nobody(together: Together) -> None:
    *without, last = together.saw
    assert [(result["part"], result["gradient"]) for result in without] == [(0, 0)] * len(without)
    assert last["part"] == pytest.approx(torch.log(torch.tensor(2.0)).item())
    assert last["gradient"] == pytest.approx(1.0)  # three pixels, two channels, each 1/2 of a third


def test_a_loss_that_is_nan_in_one_process_ends_all(together: Together) -> None:
    assert all("none" not in result["errors"] for result in together.saw)
    assert read_checkpoint(together.out / "nan")[1]["iteration"] == 3


def test_dropout_of_a_process_is_its_own_and_the_same_after_a_resume(together: Together) -> None:
    seeds = [result["seeds"] for result in together.saw]
    assert all(first == again != later for first, again, later in seeds)
    assert len({first for first, _, _ in seeds}) == together.size


def test_more_processes_than_samples_are_refused_by_all(together: Together) -> None:
    assert all("wanted at most 1, the recipe's batch" in result["errors"][0] for result in together.saw)


def test_processes_start_from_the_weights_of_the_first_and_on_the_same_data(together: Together) -> None:
    assert len({result["weight"] for result in together.saw}) == 1
    wanted = "process 0 starts at iteration 0 and process 1 at 0, of another recipe, network or dataset"
    assert all(wanted in result["errors"][1] for result in together.saw)


@pytest.mark.parametrize(("batch", "accumulate", "size"), [(4, 16, 1), (4, 16, 8), (4, 3, 3), (4, 1, 3), (7, 2, 4)])
@pytest.mark.parametrize("start", [0, 2])
def test_samples_are_dealt_out_without_drops_or_repeats(batch: int, accumulate: int, size: int, start: int) -> None:
    recipe = tiny_recipe("segmenter", batch=batch, accumulate=accumulate, iterations=3)
    shares = [list(Share(recipe, rank, size).samples(start)) for rank in range(size)]
    dealt = sorted(n for share in shares for part in share for n in part)
    assert dealt == list(range(start * batch * accumulate, recipe.samples))
    assert all(part for share in shares for part in share), "a process would wait for one that has nothing to do"
    steps = [len(Share(recipe, rank, size).sub_batches) for rank in range(size)]
    assert [len(share) for share in shares] == [(3 - start) * count for count in steps]


def test_whole_sub_batches_need_no_statistics_of_others() -> None:
    recipe = tiny_recipe("classifier", batch=2, accumulate=8)
    assert Share(recipe, 1, 4).whole
    assert list(Share(recipe, 1, 4).sub_batches) == [1, 5]
    assert not Share(tiny_recipe("classifier", batch=4, accumulate=8, batch_norm=True), 1, 4).whole
    with pytest.raises(InputError, match=r"wanted at most 2, .* divides its accumulate 8, got 3"):
        Share(recipe, 0, 3)
