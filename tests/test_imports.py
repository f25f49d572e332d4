"""The order of the modules, and rules that hold for every one of them; read from the source, nothing is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ddn_fast"

# Imports point up this list only: a module knows those above it and none below.
ORDER = [
    "_C",  # the compiled extension
    "errors", "threads", "distributed", "config", "labels", "files", "images", "drawing", "packing", "plan",
    "reference", "dense_ops", "training_ops", "training_ops_cuda", "ops", "info", "captured", "runtime", "segmentation",
    "network", "folding", "image_part", "engine", "caffemodel", "release", "vgg", "weights", "evaluate",
    "data.voc", "data.tags", "data.few", "data.windows", "data.check", "data.items", "data.datasets", "data.synthetic",
    "data.matfile", "data.sbd", "data.shapes", "data.importing", "data.coco", "data.labelmap", "data",
    "training.recipe", "training.loss", "training.solver", "training.bn", "training.checkpoint", "training.curves",
    "training.board", "training.validation", "training.share", "training.loop", "training.before",
    "training.classifier",
    "training.kept_maps", "training.trained_part", "training.segmenter", "training",
    "demo", "process_group", "cli_images", "cli_predict", "cli_data", "cli", "train", "",
]  # fmt: skip

FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES = pytest.mark.parametrize("module", sorted(FILES))


def tree_of(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text())


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs: what stands under ``if TYPE_CHECKING`` is left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            child = ast.Module(child.orelse, [])
        yield child
        yield from runtime_nodes(child)


def imports_of(module: str, tree: ast.Module) -> set[str]:
    """Modules of this package that a module imports, at its top or inside a function; "" is the package itself."""
    is_package = FILES[module].name == "__init__.py"
    here = ["ddn_fast", *filter(None, module.split("."))]
    found = set()
    for node in runtime_nodes(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.split(".")[0] == "ddn_fast"}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + is_package] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            if origin.split(".")[0] == "ddn_fast":
                for name in node.names:
                    full = f"{origin}.{name.name}".removeprefix("ddn_fast.")
                    found.add(f"ddn_fast.{full}" if full in ORDER else origin)
    return {name.removeprefix("ddn_fast").removeprefix(".") for name in found}


def test_the_order_names_every_module_once() -> None:
    assert sorted([*FILES, "_C"]) == sorted(ORDER)


@MODULES
def test_imports_point_up_the_order_only(module: str) -> None:
    below = [name for name in imports_of(module, tree_of(module)) if ORDER.index(name) >= ORDER.index(module)]
    assert not below, f"{module or 'ddn_fast'} imports {below}, which stand below it"


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
from __future__ import annotations
import torch
from typing import TYPE_CHECKING
from ..errors import InputError
from .. import ops, weights
if TYPE_CHECKING:
    from .. import cli
else:
    from .. import plan
def f():
    from .voc import VocFolder
    import ddn_fast.info
    class C:
        from ddn_fast import demo as d
from . import few
from .. import load
"""
    wanted = {"errors", "ops", "weights", "plan", "data.voc", "info", "demo", "data.few", ""}
    assert imports_of("data.tags", ast.parse(source)) == wanted
    assert imports_of("data", ast.parse("from .few import few_masks\nfrom ..errors import DataError")) == {
        "data.few",
        "errors",
    }
    assert imports_of("", ast.parse("from .weights import load\nfrom . import plan")) == {"weights", "plan"}


@MODULES
def test_every_public_name_has_a_docstring(module: str) -> None:
    tree = tree_of(module)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

    def is_overload(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
        return "overload" in map(ast.unparse, node.decorator_list)

    def missing(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
        for child in node.body:
            if isinstance(child, kinds) and not child.name.startswith("_") and not is_overload(child):
                if ast.get_docstring(child) is None:
                    yield prefix + child.name
                if isinstance(child, ast.ClassDef):
                    yield from missing(child, f"{prefix}{child.name}.")

    assert ast.get_docstring(tree)
    assert list(missing(tree, "")) == []


@pytest.mark.parametrize("module", sorted(set(FILES) - {"weights", "cli"}))
def test_no_module_asks_whether_it_is_fast(module: str) -> None:
    """The plain and the fused path are two namespaces with the same names; the user chooses once, where he loads."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            names = {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}
            names |= {n.attr for n in ast.walk(node.test) if isinstance(n, ast.Attribute)}
            assert not [name for name in names if re.search(r"(^|_)(fast|fused)(_|$)", name)], ast.unparse(node.test)


@MODULES
def test_no_module_reads_pickles_or_runs_text(module: str) -> None:
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {getattr(node, "module", None), *(name.name for name in node.names)}
            assert not names & {"pickle", "dill", "joblib", "shelve"}
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec")
            if called == "torch.load":
                flags = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert flags.get("weights_only") == "True"
