"""What `ddn-fast info` reports."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch

import ddn_fast
from ddn_fast import info, reference
from ddn_fast.errors import InputError


def test_info_is_plain_json_and_names_every_op() -> None:
    found = json.loads(json.dumps(info.collect()))
    assert set(found["ops"]) == set(reference.OPS)
    assert all(kernels["cpu"] for kernels in found["ops"].values())
    assert found["versions"]["torch"]
    text = info.text()
    assert all(name in text for name in reference.OPS)


def test_cpu_features_never_claim_a_wider_set_without_its_base() -> None:
    features = info.collect()["cpu"]["features"]
    assert all(isinstance(present, bool) for present in features.values())
    for name in ("avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"):
        assert not features[name] or features["avx512f"]
    assert not features["avx_vnni"] or features["avx2"]
    assert not features["avx512f"] or (features["avx2"] and features["fma"])
    assert not features["amx_permission"] or features["amx_bf16"]


def test_info_names_the_instruction_set_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddn_fast import _C

    isas = _C.cpu_isas()
    assert isas[0] == "plain"
    monkeypatch.delenv("DDN_MAX_CPU_ISA", raising=False)
    assert info.collect()["cpu"]["isa"] == isas[-1]
    for isa in isas:
        monkeypatch.setenv("DDN_MAX_CPU_ISA", isa)
        assert info.collect()["cpu"]["isa"] == isa
        assert re.search(rf"^kernels use +{isa}$", info.text(), re.MULTILINE)


def test_an_instruction_set_that_is_none_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDN_MAX_CPU_ISA", "sse9")
    for ask in (info.cpu_isa, info.collect):
        with pytest.raises(InputError, match="got sse9"):
            ask()


def test_ops_without_a_cuda_kernel_are_not_said_to_have_one() -> None:
    kernels = info.collect()["ops"]
    assert [name for name, built in kernels.items() if built["cuda"]] in ([], list(reference.OPS))


def test_info_works_without_the_extension_and_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ddn_fast, "_C", raising=False)
    monkeypatch.setitem(sys.modules, "ddn_fast._C", None)
    found = info.collect()
    assert found["build"] is None
    assert not any(built for kernels in found["ops"].values() for built in kernels.values())
    assert any("pip install" in sentence for sentence in found["missing"])
    assert "no kernel" in info.text()


@pytest.mark.parametrize(
    ("archs", "capability", "covered"),
    [
        (["80-real"], (8, 0), True),
        (["80-real"], (8, 6), True),
        (["86-real"], (8, 0), False),
        (["80-real"], (9, 0), False),
        (["90a-real"], (9, 0), True),
        (["90a-real"], (10, 0), False),
        (["90a-virtual"], (10, 0), False),
        (["80-virtual"], (12, 0), True),
        (["90-virtual"], (8, 0), False),
        (["100f-real"], (10, 3), True),
        (["100-real", "80-real"], (8, 9), True),
        ([], (9, 0), False),
    ],
)
def test_coverage_follows_the_compatibility_rules(archs: list[str], capability: tuple[int, int], covered: bool) -> None:
    assert info.covers(archs, capability) is covered


def test_malformed_architecture_is_an_error() -> None:
    with pytest.raises(ValueError, match="got 'sm_90'"):
        info.covers(["sm_90"], (9, 0))


@pytest.mark.parametrize(
    ("archs", "capability", "code"),
    [
        (["80-real", "86-real", "80-virtual"], (8, 9), "86-real"),
        (["80-real", "90a-real", "80-virtual"], (9, 0), "90a-real"),
        (["90-real", "90a-real"], (9, 0), "90a-real"),
        (["80-real", "80-virtual"], (12, 0), "80-virtual"),
        (["80-real"], (9, 0), None),
    ],
)
def test_the_code_a_gpu_runs_is_the_nearest(archs: list[str], capability: tuple[int, int], code: str | None) -> None:
    assert info.code_for(archs, capability) == code


def test_info_says_what_a_gpu_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, major, minor, total_memory = "NVIDIA Test", 8, 6, 2**34

    native, _ = info._extension()
    build = native.build_info() | {"cuda": "13.0", "cuda_archs": ["80-real", "90a-real"]}
    monkeypatch.setattr(native, "build_info", lambda: build)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(info, "_cuda_isa", lambda _: "mma")
    assert re.search(r"^kernels use +80-real, conv3x3 by mma$", info.text(), re.MULTILINE)
    assert info.engine_lacks(torch.device("cuda:0")) is None
    assert info.kernels_of(0) == "NVIDIA Test, 80-real, mma"
    build["cuda_archs"] = ["90a-real"]
    assert "rebuild with 8.6 in TORCH_CUDA_ARCH_LIST" in info.text()
    assert re.search(r"^kernels use +none fits$", info.text(), re.MULTILINE)
