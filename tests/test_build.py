"""The build: what it accepts, what it refuses and how, and what nvcc makes of the kernels."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
KERNELS = sorted(path.stem for path in (CSRC / "cuda").glob("*.cu") if path.stem not in ("errors", "isa"))
POOLING = ("gather2x2", "max_pool2x2", "max_unpool2x2")
# at most, of a thread: what lets as many blocks share a multiprocessor as the kernel's header says
REGISTERS = {
    **dict.fromkeys(("class_gate", "conv3x3_wgmma_bfloat16", "conv3x3_wgmma_float16"), 128),
    **dict.fromkeys(("conv3x3_bfloat16", "conv3x3_float16"), 255),
}
DEFAULT_ARCHS = "80-real;86-real;89-real;90a-real;100-real;80-virtual"


@pytest.fixture(scope="session")
def cmake() -> str:
    found = shutil.which("cmake")
    if found is None:
        pytest.skip("no cmake on PATH")
    return found


@pytest.fixture(scope="session")
def nvcc() -> str:
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None:
        pytest.skip("no nvcc to compile the CUDA kernels with")
    return found


def run(*command: str | Path, **environment: str) -> tuple[int, str]:
    """Exit status, and all output as one line: CMake wraps its messages."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    return done.returncode, " ".join((done.stdout + done.stderr).split())


# options


def configure(cmake: str, folder: Path, *options: str, **environment: str) -> tuple[int, str]:
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    return run(cmake, "-S", ROOT, "-B", folder, *generator, "-DDDN_TESTS=OFF", *options, **environment)


@pytest.fixture
def without_nvcc(tmp_path: Path) -> dict[str, str]:
    """An environment, and an option, in which every tool is found but nvcc."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for folder in os.environ["PATH"].split(os.pathsep):
        for tool in ("g++", "c++", "gcc", "cc", "ld", "ar", "ranlib", "make", "ninja", "as", "nm", "strip", "uname"):
            source = Path(folder) / tool
            if source.is_file() and not (tools / tool).exists():
                (tools / tool).symlink_to(source)
    return {"PATH": str(tools), "CUDACXX": "", "CUDA_HOME": "", "CUDA_PATH": ""}


def test_cuda_on_without_nvcc_fails_and_says_what_to_do(
    cmake: str, tmp_path: Path, without_nvcc: dict[str, str]
) -> None:
    options = ("-DDDN_CUDA=ON", f"-DDDN_CUDA_HOME={tmp_path / 'none'}")
    status, output = configure(cmake, tmp_path / "build", *options, **without_nvcc)
    assert status != 0
    assert "DDN_CUDA=ON, but nvcc is not on PATH" in output
    assert "CUDACXX=/path/to/nvcc, or build without: DDN_CUDA=OFF" in output


def test_cuda_auto_without_nvcc_builds_without_cuda(cmake: str, tmp_path: Path, without_nvcc: dict[str, str]) -> None:
    options = ("-DDDN_CUDA=AUTO", f"-DDDN_CUDA_HOME={tmp_path / 'none'}")
    status, output = configure(cmake, tmp_path / "build", *options, **without_nvcc)
    assert status == 0, output
    assert "CUDA kernels: none (DDN_CUDA=AUTO)" in output


def test_cuda_off_ignores_nvcc(cmake: str, tmp_path: Path) -> None:
    status, output = configure(cmake, tmp_path, "-DDDN_CUDA=OFF")
    assert status == 0, output
    assert "CUDA kernels: none (DDN_CUDA=OFF)" in output


@pytest.mark.parametrize("mode", ["AUTO", "ON"])
def test_cudacxx_that_is_not_there_is_an_error(cmake: str, tmp_path: Path, mode: str) -> None:
    status, output = configure(cmake, tmp_path, f"-DDDN_CUDA={mode}", CUDACXX="/nowhere/nvcc")
    assert status != 0
    assert "CUDACXX must name an nvcc, got '/nowhere/nvcc'" in output


def test_unknown_cuda_mode_is_an_error(cmake: str, tmp_path: Path) -> None:
    status, output = configure(cmake, tmp_path, "-DDDN_CUDA=maybe")
    assert status != 0
    assert "DDN_CUDA must be AUTO, ON or OFF, got 'maybe'" in output


def archs(cmake: str, wanted: str, nvcc_version: str = "13.0") -> tuple[int, str]:
    script = ROOT / "cmake/cuda_archs.cmake"
    return run(cmake, f"-DLIST={wanted}", f"-DNVCC_VERSION={nvcc_version}", "-P", script)


@pytest.mark.parametrize(
    ("wanted", "translated"),
    [
        ("", DEFAULT_ARCHS),
        ("8.0", "80-real"),
        ("8.0;9.0a+PTX", "80-real;90a-real;90a-virtual"),
        ("8.6 9.0+PTX", "86-real;90-real;90-virtual"),
        ("8.0, 12.0 8.0", "80-real;120-real"),
    ],
)
def test_torch_cuda_arch_list_is_translated(cmake: str, wanted: str, translated: str) -> None:
    assert archs(cmake, wanted) == (0, translated)


def test_default_archs_are_those_that_nvcc_knows(cmake: str) -> None:
    assert archs(cmake, "", "12.4") == (0, DEFAULT_ARCHS.replace("100-real;", ""))


def test_too_old_archs_are_left_out_with_a_warning(cmake: str) -> None:
    status, output = archs(cmake, "7.0 7.5 8.0+PTX")
    assert status == 0
    assert "7.5 is left out, the kernels need 8.0 or newer" in output
    assert output.endswith("80-real;80-virtual")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("Hopper", "an entry must read like 8.0, 9.0a or 9.0+PTX, got 'Hopper'"),
        ("8.0;sm_90", "an entry must read like 8.0, 9.0a or 9.0+PTX, got 'sm_90'"),
        ("7.5", "TORCH_CUDA_ARCH_LIST must hold 8.0 or newer, got '7.5'"),
        (" ", "TORCH_CUDA_ARCH_LIST must hold 8.0 or newer"),
    ],
)
def test_unusable_arch_list_is_an_error(cmake: str, wanted: str, message: str) -> None:
    status, output = archs(cmake, wanted)
    assert status != 0
    assert message in output


# sources


def test_only_the_seam_knows_torch() -> None:
    inside = {path.relative_to(CSRC).as_posix(): path.read_text() for path in CSRC.rglob("*.*")}
    knows = {name for name, source in inside.items() if re.search(r'#include [<"](torch/(csrc|head)|ATen|c10)', source)}
    assert knows == {"torch/checks.h", "torch/launch.h"}  # through the latter, the ops_*.cpp


def test_instruction_sets_are_never_those_of_the_building_machine() -> None:
    build_files = [ROOT / "CMakeLists.txt", ROOT / "setup.py", *(ROOT / "cmake").glob("*.cmake")]
    assert not [path for path in build_files if "march=native" in path.read_text()]


@pytest.mark.parametrize("source", sorted((CSRC / "cpu").glob("*_avx512.cpp")), ids=lambda source: source.stem)
def test_a_variant_leaves_no_function_that_others_may_be_linked_to(source: Path, tmp_path: Path) -> None:
    """Without optimisation either, which would inline most."""
    compiler, nm = shutil.which("g++"), shutil.which("nm")
    if compiler is None or nm is None or platform.machine() != "x86_64":
        pytest.skip("no g++ and nm for x86-64")
    sets = [f"-mavx512{name}" for name in ("f", "bw", "dq", "vl")]
    flags = ["-std=c++20", "-O0", "-w", "-mfma", *sets, f"-I{CSRC}"]
    status, output = run(compiler, *flags, "-c", source, "-o", tmp_path / "variant.o")
    assert status == 0, output
    symbols = subprocess.run([nm, "-C", tmp_path / "variant.o"], capture_output=True, text=True, check=True).stdout
    assert " T ddn::" in symbols or " D ddn::" in symbols
    assert not re.findall(r" [WVu] ddn::.*", symbols)


# what nvcc makes of the kernels


def nvcc_archs(cmake: str, nvcc: str) -> list[str]:
    version = re.search(r"release (\d+\.\d+)", run(nvcc, "--version")[1])
    assert version is not None
    return archs(cmake, "", version[1])[1].split(";")


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_compile_for_every_arch_without_spills(cmake: str, nvcc: str, kernel: str, tmp_path: Path) -> None:
    wanted = [arch.removesuffix("-real") for arch in nvcc_archs(cmake, nvcc) if arch.endswith("-real")]
    if "wgmma" in kernel:
        wanted = [arch for arch in wanted if arch == "90a"]
    elif kernel == "conv3x3_float16":  # the source is that of conv3x3_bfloat16, which takes its time
        wanted = wanted[:1]
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in wanted]
    source = CSRC / f"cuda/{kernel}.cu"
    flags = ["-std=c++17", "-O3", "-t2", f"-I{CSRC}", "-Xptxas=-v", *targets]
    status, output = run(nvcc, *flags, "-c", source, "-o", tmp_path / "kernel.o")
    assert status == 0, output
    compiled = re.findall(r"Compiling entry function '\w+' for 'sm_(\w+)'", output)
    assert set(compiled) == set(wanted)
    assert set(re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", output)) == {"0"}
    assert "C75" not in output  # products that wait for each other, registers that are not handed over
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", output)]
    assert len(registers) == len(compiled)
    assert max(registers) <= REGISTERS.get(kernel, 96)


@pytest.mark.parametrize("kernel", POOLING)
def test_wide_kernels_move_16_bytes_at_a_time(nvcc: str, kernel: str, tmp_path: Path) -> None:
    ptx = tmp_path / "kernel.ptx"
    flags = ["-std=c++17", "-O3", f"-I{CSRC}", "-arch=compute_80", "-ptx"]
    status, output = run(nvcc, *flags, CSRC / f"cuda/{kernel}.cu", "-o", ptx)
    assert status == 0, output
    entries = re.split(r"\.entry ", ptx.read_text())[1:]
    wide = [entry for entry in entries if re.match(r"\w+Li8E", entry)]
    assert len(wide) == len(entries) / 2
    for entry in wide:
        assert re.search(r"ld\.global\.nc\.(v4\.[bu]32|v2\.[bu]64)", entry)
        assert re.search(r"st\.global\.(v4\.[bu]32|v2\.[bufd]64)", entry)


@pytest.mark.parametrize(("dtype", "type_name"), [("bfloat16", "bf16"), ("float16", "f16")])
def test_convolution_multiplies_matrices_from_asynchronous_copies(
    nvcc: str, dtype: str, type_name: str, tmp_path: Path
) -> None:
    ptx = tmp_path / "kernel.ptx"
    flags = ["-std=c++17", "-O3", f"-I{CSRC}", "-arch=compute_80", "-ptx"]
    status, output = run(nvcc, *flags, CSRC / f"cuda/conv3x3_{dtype}.cu", "-o", ptx)
    assert status == 0, output
    entries = re.split(r"\.entry ", ptx.read_text())[1:]
    assert len(entries) == 7  # map and pooled in three tiles each, image in one
    for entry in entries:
        products = entry.count(f"mma.sync.aligned.m16n8k16.row.col.f32.{type_name}.{type_name}.f32")
        # per 32 channels of a tap; a left fragment is loaded once, a right one serves all rows
        assert products in (2 * 5 * 8, 2 * 5 * 4)
        assert entry.count("ldmatrix.sync.aligned.m8n8.x4") == 2 * 5
        assert entry.count("cp.async.cg.shared.global") >= 2


@pytest.mark.parametrize(("dtype", "type_name"), [("bfloat16", "bf16"), ("float16", "f16")])
def test_convolution_of_sm_90a_multiplies_matrices_of_a_warpgroup(
    nvcc: str, dtype: str, type_name: str, tmp_path: Path
) -> None:
    ptx = tmp_path / "kernel.ptx"
    flags = ["-std=c++17", "-O3", f"-I{CSRC}", "-arch=compute_90a", "-ptx"]
    status, output = run(nvcc, *flags, CSRC / f"cuda/conv3x3_wgmma_{dtype}.cu", "-o", ptx)
    assert status == 0, output
    entries = re.split(r"\.entry ", ptx.read_text())[1:]
    found = set()
    for entry in entries:
        products = re.findall(rf"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.{type_name}\.{type_name}", entry)
        found.add((products[0], len(products)))
        assert len(set(products)) == 1
        assert entry.count("cp.async.bulk.shared::cluster.global.mbarrier") >= 1
        assert entry.count("fence.proxy.async") == 2  # for either input
    # per 32 channels of three taps: two halves times the tile's strips
    assert found == {("160", 6 * 2), ("64", 6 * 5), ("80", 6 * 3)}


@pytest.fixture(scope="module")
def machine_code() -> list[str]:
    """The installed extension's functions for GPUs, disassembled."""
    cuobjdump = shutil.which("cuobjdump") or shutil.which("cuobjdump", path="/usr/local/cuda/bin")
    if cuobjdump is None:
        pytest.skip("no cuobjdump to read machine code with")
    from ddn_fast import _C

    if not _C.build_info()["cuda_archs"]:
        pytest.skip("built without CUDA kernels")
    dump = subprocess.run([cuobjdump, "--dump-sass", _C.__file__], capture_output=True, text=True, check=True).stdout
    return re.split(r"Function : ", dump)[1:]


def test_installed_kernels_load_128_bits_in_machine_code(machine_code: list[str]) -> None:
    for function in machine_code:
        if re.match(r"\w+2x2_kernel\w+Li8E", function):
            assert "LDG.E.128" in function, function.split("\n")[0]


def test_installed_convolutions_multiply_matrices_in_machine_code(machine_code: list[str]) -> None:
    convolutions = [function for function in machine_code if "conv3x3_kernel" in function.split("\n")[0]]
    assert convolutions
    for function in convolutions:
        assert function.count("HMMA.16816.F32") >= 40, function.split("\n")[0]
        assert "LDSM.16.M88.4" in function, function.split("\n")[0]
        assert "LDGSTS" in function, function.split("\n")[0]
        assert not re.search(r"\b(LDL|STL)\b", function), function.split("\n")[0]  # spills


def test_installed_convolutions_of_sm_90a_keep_products_in_flight(machine_code: list[str]) -> None:
    convolutions = [function for function in machine_code if "conv3x3_wgmma_kernel" in function.split("\n")[0]]
    from ddn_fast import _C

    if not any(arch.startswith("90a") for arch in _C.build_info()["cuda_archs"]):
        pytest.skip("built without sm_90a")
    assert convolutions
    for function in convolutions:
        assert len(re.findall(r"HGMMA\.64x(?:160|64|80)x16\.F32", function)) >= 12, function.split("\n")[0]
        # begun once a tap, waited for once a tap and at the end
        assert function.count("WARPGROUP.ARRIVE") == 3, function.split("\n")[0]
        assert function.count("WARPGROUP.DEPBAR") == 4, function.split("\n")[0]
        assert not re.search(r"\b(LDL|STL)\b", function), function.split("\n")[0]  # spills
