"""Recipes: those that ship, and everything that can be wrong with one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from ddn_fast.config import NetConfig
from ddn_fast.errors import ConfigError
from ddn_fast.training.recipe import MAX_BYTES, RECIPES, Recipe, from_dict, load_recipe

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.toml"))
MINIMAL = 'stage = "segmenter"\niterations = 10\n'


def test_recipes_ship_for_both_stages() -> None:
    assert set(SHIPPED) >= {"classifier", "full", "25-per-class", "10-per-class", "5-per-class"}
    assert {load_recipe(name).stage for name in SHIPPED} == {"classifier", "segmenter"}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_loads_and_describes_a_network(name: str) -> None:
    recipe = load_recipe(name)
    NetConfig(**recipe.to_dict()["network"])
    assert load_recipe(RECIPES / f"{name}.toml") == recipe


@pytest.mark.parametrize(
    ("name", "iterations", "step", "masks"),
    [
        ("full", 17_500, 10_000, 0),
        ("25-per-class", 15_000, 10_000, 25),
        ("10-per-class", 7_500, 10_000, 10),
        ("5-per-class", 5_500, 4_000, 5),
    ],
)
def test_release_recipes_have_the_figures_of_section_8(name: str, iterations: int, step: int, masks: int) -> None:
    recipe = load_recipe(name)
    assert (recipe.stage, recipe.optimizer, recipe.schedule) == ("segmenter", "sgd", "step")
    assert (recipe.iterations, recipe.step, recipe.masks_per_class) == (iterations, step, masks)
    assert (recipe.lr, recipe.gamma, recipe.momentum, recipe.weight_decay) == (0.01, 0.1, 0.9, 5e-4)
    assert (recipe.batch, recipe.accumulate, recipe.resize, recipe.warmup) == (4, 16, 350, 0)
    assert (recipe.bn_batches, recipe.bn_batch) == (101, 16)
    assert recipe.weight_decay / recipe.accumulate == pytest.approx(3.1e-5, rel=0.01)


def test_stage_1_recipe_learns_the_last_layer_at_ten_times_the_rate() -> None:
    assert load_recipe("classifier").last_layer_lr == 10


def test_plain_values_read_back_as_the_same_recipe() -> None:
    for name in SHIPPED:
        recipe = load_recipe(name)
        assert from_dict(recipe.to_dict()) == recipe


# learning rate


def schedule(**values: object) -> Recipe:
    return from_dict({"stage": "segmenter", "iterations": 100, "lr": 1.0, **values})


def test_step_schedule_drops_exactly_at_each_step() -> None:
    recipe = schedule(step=30, gamma=0.1)
    rates = [recipe.lr_at(i) for i in range(100)]
    assert rates == pytest.approx([0.1 ** (i // 30) for i in range(100)])
    assert rates[29] == 1
    assert rates[30] == pytest.approx(0.1)


def test_cosine_schedule_falls_from_lr_to_nearly_nothing() -> None:
    recipe = schedule(schedule="cosine")
    rates = [recipe.lr_at(i) for i in range(100)]
    assert rates == pytest.approx([0.5 + 0.5 * math.cos(math.pi * i / 100) for i in range(100)])
    assert rates[0] == 1
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 1e-3


def test_warmup_grows_linearly_and_reaches_the_schedule_at_its_end() -> None:
    recipe, plain = schedule(warmup=10, schedule="cosine"), schedule(schedule="cosine")
    for i in range(100):
        assert recipe.lr_at(i) == pytest.approx(plain.lr_at(i) * min(1, (i + 1) / 10))
    assert recipe.lr_at(0) == pytest.approx(0.1)
    assert recipe.lr_at(9) == plain.lr_at(9)


# wrong recipes


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (MINIMAL + "iteration = 3", "unknown key 'iteration'"),
        ('stage = "segmenter"', "key 'iterations' is missing"),
        ("iterations = 3", "key 'stage' is missing"),
        ('stage = "both"\niterations = 3', "stage: wanted one of"),
        ('stage = ["segmenter"]\niterations = 3', "stage: wanted one of"),
        ('stage = "segmenter"\niterations = "ten"', "iterations: wanted int, got 'ten'"),
        ('stage = "segmenter"\niterations = 3.5', "iterations: wanted int, got 3.5"),
        ('stage = "segmenter"\niterations = true', "iterations: wanted int, got True"),
        (MINIMAL + "lr = true", "lr: wanted float, got True"),
        (MINIMAL + 'lr = "1e-3"', "lr: wanted float"),
        (MINIMAL + "batch_norm = 1", "batch_norm: wanted bool, got 1"),
        (MINIMAL + "network = 3", r"\[network\]: wanted a table"),
        (MINIMAL + "[network]\nheight = 3", r"\[network\]: unknown key 'height'"),
        (MINIMAL + '[network]\nside = "64"', r"\[network\]: side: wanted int"),
        (MINIMAL + "[network]\nside = 65", r"\[network\]: side: wanted a multiple of 32, got 65"),
        (MINIMAL + "[network]\nwidths = 64", r"\[network\]: widths: wanted a list"),
        (MINIMAL + "[network]\nwidths = [1, 2, 3]", r"\[network\]: widths: wanted 5"),
        (MINIMAL + "[network]\nwidths = [1, 2, 3, 4, 5.5]", r"\[network\]: widths: wanted int, got 5.5"),
        (MINIMAL + "[network]\nside = 64", r"\[network\]: fc_kernel: wanted at most"),
    ],
)
def test_wrong_key_or_type_is_named_with_its_file(tmp_path: Path, text: str, key: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=key) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


AT_LEAST_1 = "iterations batch accumulate step resize bn_batches bn_batch log_every windows_per_subset max_subsets"
AT_LEAST_0 = "warmup masks_per_class checkpoint_every validate_every seed"


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, low - 1) for low, keys in ((1, AT_LEAST_1), (0, AT_LEAST_0)) for key in keys.split()]
    + [(key, 2**31) for key in f"{AT_LEAST_1} {AT_LEAST_0}".split()]
    + [("batch", 10**400)]
    + [("weight_decay", -1e-9)]
    + [(key, value) for key in ("momentum", "dropout") for value in (-0.1, 1.0, 1)]
    + [(key, value) for key in ("lr", "gamma", "last_layer_lr") for value in (0.0, -1.0, 10**400)]
    + [(key, float(v)) for key in ("lr", "gamma", "momentum", "weight_decay", "dropout") for v in ("nan", "inf")],
    ids=lambda value: str(value) if abs(hash(value)) < 2**40 or isinstance(value, str) else "huge",
)
def test_value_out_of_range_is_named_with_its_file(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^some\.toml: {key}: wanted"):
        from_dict({"stage": "segmenter", "iterations": 10, key: value}, "some.toml")


def test_smallest_values_are_allowed() -> None:
    ones, zeros = dict.fromkeys(AT_LEAST_1.split(), 1), dict.fromkeys(AT_LEAST_0.split(), 0)
    from_dict({"stage": "segmenter", **ones, **zeros, "momentum": 0, "weight_decay": 0, "dropout": 0.0})


def test_every_whole_number_of_a_recipe_is_range_checked() -> None:
    numbers = {field.name for field in dataclasses.fields(Recipe) if field.type == "int"}
    assert numbers == set(f"{AT_LEAST_1} {AT_LEAST_0}".split())


def test_missing_recipe_is_named_with_those_that_ship(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing-here") as caught:
        load_recipe("nothing-here")
    assert all(name in str(caught.value) for name in SHIPPED)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "a\0b", "x" * 5000])
def test_name_that_is_no_file_name_is_a_config_error(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(name)


def test_huge_recipe_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "huge.toml"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match=rf"huge\.toml: wanted a recipe of at most {MAX_BYTES} bytes"):
        load_recipe(path)
    with pytest.raises(ConfigError, match="at most"):
        load_recipe("/dev/zero")  # a file of size 0 that never ends


@pytest.mark.parametrize(
    "content",
    [
        b"stage = ",
        b"\xff\xfe\x00",
        b"a = " + b"[" * 100_000,
        b"iterations = " + b"9" * 10_000,
        b"stage = 'segmenter'\nstage = 'segmenter'\n",
    ],
    ids=["cut", "binary", "deep", "absurd number", "twice"],
)
def test_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml"):
        load_recipe(path)
