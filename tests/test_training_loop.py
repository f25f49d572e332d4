"""The training loop on a line through a few numbers: skipped batches, divergence, resuming, loading."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
from tiny_training import StoppedError, assert_same_run, read_checkpoint, read_log, stop_at, toy_run

from ddn_fast.errors import CheckpointError, ConfigError, DivergedError
from ddn_fast.training.before import check_stage
from ddn_fast.training.loop import CHECKPOINT, LOG, Run, batches_from, default_workers
from ddn_fast.training.share import Share


def weights_of(run: Run) -> list[float]:
    return [p.item() for p in run.model.parameters()]


# one step


def test_all_void_sub_batch_is_skipped(tmp_path: Path) -> None:
    run = toy_run(tmp_path / "a", [1.0, 2.0, -1.0, -1.0], iterations=1, weight_decay=0.0, momentum=0.0)
    run.train()
    torch.manual_seed(run.recipe.seed)
    plain = toy_run(tmp_path / "b")
    batch = {"x": torch.tensor([[0.0], [1.0]]), "target": torch.tensor([[1.0], [2.0]])}
    loss = plain.loss(batch)
    assert loss is not None
    gradients = torch.autograd.grad(loss, list(plain.model.parameters()))
    wanted = [p.item() - 0.01 * g.item() / 2 for p, g in zip(plain.model.parameters(), gradients, strict=True)]
    assert weights_of(run) == pytest.approx(wanted, rel=1e-6)
    assert run.log[0]["loss"] == pytest.approx(loss.item())


def test_run_of_void_alone_moves_nothing_and_writes_valid_json(tmp_path: Path) -> None:
    run = toy_run(tmp_path, [-1.0])
    before = weights_of(run)
    run.train()
    assert weights_of(run) == before
    lines = (tmp_path / LOG).read_text().splitlines()
    entries = [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in lines]
    assert [entry["loss"] for entry in entries] == [None, None, None]


def test_log_holds_mean_loss_rate_and_speed(tmp_path: Path) -> None:
    run = toy_run(tmp_path, iterations=5, log_every=2, step=3)
    losses = []
    step = run._step

    def recorded(iteration: int, batches: object) -> float:
        losses.append(step(iteration, batches))  # type: ignore[arg-type]
        return losses[-1]

    run._step = recorded  # type: ignore[method-assign]
    run.train()
    assert [entry["iteration"] for entry in run.log] == [2, 4, 5]
    wanted = [sum(losses[:2]) / 2, sum(losses[2:4]) / 2, losses[4]]
    assert [entry["loss"] for entry in run.log] == pytest.approx(wanted)
    assert [entry["lr"] for entry in run.log] == pytest.approx([0.01, 0.001, 0.001])
    assert all(entry["images_per_second"] > 0 for entry in run.log)
    assert [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()] == run.log


def test_progress_shows_loss_rate_speed_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = toy_run(tmp_path)
    run.progress = True
    run.train()
    shown = capsys.readouterr().err
    for part in ("training", "loss 0.", "lr 0.01", "images/s", "6/6"):
        assert part in shown


def test_validation_runs_when_due_and_is_logged(tmp_path: Path) -> None:
    run = toy_run(tmp_path, iterations=6, validate_every=2)
    run.validate = lambda iteration: run.add({"iteration": iteration, "mean_iu": 0.5})
    run.train()
    assert [entry["iteration"] for entry in run.log if "mean_iu" in entry] == [2, 4]  # at 6 the caller validates


def test_recipe_of_the_other_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stage: wanted 'classifier', got 'segmenter'"):
        check_stage(toy_run(tmp_path).recipe, "classifier")


# divergence


def test_nan_loss_is_a_diverged_error_and_the_last_checkpoint_loads(tmp_path: Path) -> None:
    good = [1.0, 2.0, 0.5, 1.5] * 6
    bad = [*good[:17], math.nan, *good[18:]]  # sample 17 is of iteration 4
    with pytest.raises(DivergedError, match=r"iteration 4: the loss is nan; the last checkpoint in .* is intact"):
        toy_run(tmp_path / "a", bad).train()
    assert read_checkpoint(tmp_path / "a")[1]["iteration"] == 3
    toy_run(tmp_path / "a", good).train(resume=True)
    toy_run(tmp_path / "b", good).train()
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_weights_that_are_not_finite_never_reach_a_checkpoint(tmp_path: Path) -> None:
    """The loss of the last step before a checkpoint may be finite, and its gradient not."""
    run = toy_run(tmp_path)
    plain, calls = run.loss, []

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
        calls.append(plain(batch))
        weight = next(run.model.parameters()).sum()
        return calls[-1] + (weight - weight.detach()).sqrt() if len(calls) == 12 else calls[-1]  # type: ignore[operator]

    run.loss = loss
    with pytest.raises(DivergedError, match=r"linear\.weight holds values that are not finite"):
        run.train()
    assert len(calls) == 12
    tensors, state = read_checkpoint(tmp_path)
    assert state["iteration"] == 3
    assert all(bool(value.isfinite().all()) for value in tensors.values())


def test_divergence_before_the_first_checkpoint_promises_none(tmp_path: Path) -> None:
    with pytest.raises(DivergedError) as caught:
        toy_run(tmp_path, [math.nan]).train()
    assert "checkpoint" not in str(caught.value)
    assert not (tmp_path / CHECKPOINT).exists()


# resuming


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stop", [3, 4, 5])
def test_resumed_run_equals_the_one_that_ran_through(tmp_path: Path, stop: int, workers: int) -> None:
    """Weights, momentum, random state and log; the entry of the log that a checkpoint falls into, too."""
    toy_run(tmp_path / "straight").train()
    with pytest.raises(StoppedError):
        stop_at(toy_run(tmp_path / "resumed"), stop).train()
    run = toy_run(tmp_path / "resumed")
    run.workers = workers
    run.train(resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


def test_run_without_a_checkpoint_starts_again(tmp_path: Path) -> None:
    toy_run(tmp_path / "straight").train()
    with pytest.raises(StoppedError):
        stop_at(toy_run(tmp_path / "again"), 2).train()
    assert read_log(tmp_path / "again")
    toy_run(tmp_path / "again").train(resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "again")


def test_finished_run_resumes_to_itself(tmp_path: Path) -> None:
    toy_run(tmp_path).train()
    before = (tmp_path / CHECKPOINT).read_bytes()
    run = toy_run(tmp_path)
    run.train(resume=True)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    tensors, _ = read_checkpoint(tmp_path)
    assert torch.equal(tensors["model/linear.weight"], run.model.state_dict()["linear.weight"])


def test_log_is_cut_back_to_the_checkpoint_at_resume(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        stop_at(toy_run(tmp_path), 5).train()
    assert [entry["iteration"] for entry in read_log(tmp_path)] == [2, 4]
    with (tmp_path / LOG).open("a") as file:
        file.write('{"iteration": 5, "lo')  # a line that a kill cut short
    with pytest.raises(StoppedError):
        stop_at(toy_run(tmp_path), 3).train(resume=True)
    assert [entry["iteration"] for entry in read_log(tmp_path)] == [2]


def folder_content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_folder_that_holds_a_run_is_refused_without_resume(tmp_path: Path) -> None:
    toy_run(tmp_path).train()
    before = folder_content(tmp_path)
    run = toy_run(tmp_path)
    run.on_start = lambda: pytest.fail("the folder is not this run's")  # type: ignore[assignment, return-value]
    with pytest.raises(CheckpointError, match="already holds a run"):
        run.train()
    assert folder_content(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "difference"),
    [("recipe", r"recipe\.lr is 0\.01 there and 0\.02 here"), ("network", r"network\.side"), ("data", r"data\.split")],
)
def test_run_with_another_recipe_network_or_data_is_refused(tmp_path: Path, change: str, difference: str) -> None:
    toy_run(tmp_path).train()
    before = folder_content(tmp_path)
    run = toy_run(tmp_path, **({"lr": 0.02} if change == "recipe" else {}))
    if change != "recipe":
        run.identity = {**run.identity, change: {"side": 2} if change == "network" else {"split": "val"}}
    run.on_start = lambda: pytest.fail("the folder is not this run's")  # type: ignore[assignment, return-value]
    with pytest.raises(CheckpointError, match=difference):
        run.train(resume=True)
    assert folder_content(tmp_path) == before


def test_damaged_checkpoint_is_refused_and_left(tmp_path: Path) -> None:
    toy_run(tmp_path).train()
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-5])
    before = folder_content(tmp_path)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        toy_run(tmp_path).train(resume=True)
    assert folder_content(tmp_path) == before


# loading


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("start", [0, 4])
def test_order_of_samples_does_not_depend_on_workers(tmp_path: Path, start: int, workers: int) -> None:
    run = toy_run(tmp_path)
    batches = list(batches_from(run.items, Share(run.recipe).samples(start), workers))
    numbers = torch.cat([batch["x"] for batch in batches]).flatten().tolist()
    assert numbers == list(range(4 * start, 24))
    assert all(len(batch["x"]) == 2 for batch in batches)


def test_loading_draws_nothing_from_the_random_state_that_dropout_uses(tmp_path: Path) -> None:
    run = toy_run(tmp_path)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(batches_from(run.items, Share(run.recipe).samples(0), 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_default_workers_leave_a_core_to_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, workers in ((1, 1), (2, 1), (4, 3), (64, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert default_workers() == workers
