"""NativeBackend: the cases of all that fuse, work cut in many pieces, numbers at their limits, how
the library is built, and what is refused; AutoBackend, which chooses it.
"""

import os
import stat
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mhmoe_mm.moe import (
    AutoBackend,
    BitNet,
    GeluExperts,
    GroupedBackend,
    LoopBackend,
    MHMoE,
    NativeBackend,
    Plan,
    SwiGLUExperts,
    backend_auto,
    native_build,
    native_ops,
)
from tests.moe.fused_cases import assert_all_close, run
from tests.moe.test_triton import ran

FORMS = {"gelu": GeluExperts, "swiglu": SwiGLUExperts}


@pytest.fixture(autouse=True, scope="module")
def _it_is_there():
    assert native_ops.unfit(torch.float32) == ""
    if native_ops.unfit(torch.bfloat16):
        pytest.skip(native_ops.unfit(torch.bfloat16))


@pytest.mark.slow
@pytest.mark.compile
def test_it_does_what_all_that_fuse_must_do():
    assert " passed" in ran(
        "pytest", "-o", "addopts=", "-q", "-p", "no:cacheprovider", "tests/moe/fused_cases.py"
    )


def drawn_plan(num_tokens: int, num_experts: int, top_k: int = 2) -> Plan:
    """Few tokens to most experts, most of them to one, some nowhere."""
    torch.manual_seed(1)
    expert = torch.randint(0, num_experts + 1, (num_tokens * top_k,))
    expert = torch.where(torch.rand(len(expert)) < 0.7, 0, expert)
    token = torch.arange(num_tokens).repeat_interleave(top_k)
    return Plan(token, expert, torch.rand(len(expert)) * (expert < num_experts), top_k)


def sized(form: str, width=96, hidden=1100, num_experts=3, dtype=torch.float32):
    torch.manual_seed(2)
    return FORMS[form](num_experts, width, hidden=hidden, bias=True).to(dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("width", "hidden"), [(96, 1100), (600, 70), (33, 515)])
def test_many_pieces_of_rows_and_of_inner_features_follow_the_loop(form, width, hidden):
    experts, plan, token = sized(form, width, hidden), drawn_plan(700, 3), torch.randn(700, width)
    expected = run(experts, LoopBackend(), plan, token)
    found = run(experts, NativeBackend(), plan, token)
    assert_all_close(found, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [96, 33])
def test_bfloat16_tokens_are_as_near_to_float32_as_the_loops(form, weights, width):
    experts, plan = sized(form, width), drawn_plan(700, 3)
    token = torch.randn(700, width).bfloat16()
    exact = run(experts, LoopBackend(), plan, token.float())
    low = sized(form, width, dtype=torch.bfloat16)
    loop = run(low, LoopBackend(), plan, token)
    ours = sized(form, width, dtype=weights)
    found = run(ours, NativeBackend(), plan, token)
    assert [each.dtype for each in found[3:]] == [weights] * len(found[3:])
    for one, other, true in zip(found, loop, exact, strict=True):
        assert (one.float() - true).norm() <= 1.1 * (other.float() - true).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_do_not_depend_on_the_threads(dtype):
    experts, plan = sized("swiglu", dtype=dtype), drawn_plan(700, 3)
    token, threads, found = torch.randn(700, 96).to(dtype), torch.get_num_threads(), []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            found.append(run(experts, NativeBackend(), plan, token))
    finally:
        torch.set_num_threads(threads)
    for one, two, five in zip(*found, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, five)


def identity(form: str) -> torch.nn.Module:
    """One expert that activates its token and no more; a gate that reads it, too."""
    experts = FORMS[form](1, 2, hidden=2, bias=False)
    with torch.no_grad():
        for weight in experts.parameters():
            weight.copy_(torch.eye(2))
    return experts


@pytest.mark.parametrize(
    ("form", "activation"), [("gelu", F.gelu), ("swiglu", lambda x: x * F.silu(x))]
)
def test_activations_and_their_slopes_are_exact_to_float32s_digits(form, activation):
    far = torch.tensor([1e4, -1e4, 87.0, -87.0, 88.5, -88.5, 1e-30, -1e-30, 0.0, -0.0])
    x = torch.cat([torch.linspace(-15, 15, 4000), far]).view(-1, 2)
    n = len(x)
    plan = Plan(torch.arange(n), torch.zeros(n, dtype=torch.long), torch.ones(n), 1)
    experts = identity(form)
    experts.backend = NativeBackend()
    given, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    answer, true = experts(given, plan), activation(exact)
    answer.sum().backward()
    true.sum().backward()
    assert exact.grad is not None
    scale = exact.detach().abs().clamp(min=1).square() if form == "swiglu" else exact.detach().abs()
    assert ((answer - true).abs() <= 2e-7 * (1 + scale)).all()
    assert ((given.grad - exact.grad).abs() <= 1e-6 * exact.grad.abs().clamp(min=1)).all()


def test_gradients_of_biases_keep_their_digits_where_many_rows_cancel():
    experts, plan, token = sized("gelu", 33, 1, 1), drawn_plan(900, 1), torch.randn(900, 33)
    found = run(experts, NativeBackend(), plan, token)
    exact = run(experts.double(), LoopBackend(), plan, token.double())
    for one, true in zip(found, exact, strict=True):
        assert (one - true).norm() <= 1e-5 * true.norm()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_stays_with_its_token_and_shows(bad, dtype):
    experts, token = sized("gelu", dtype=dtype), torch.randn(40, 96).to(dtype)
    plan = Plan(torch.arange(40), torch.arange(40) % 3, torch.ones(40), 1)
    token[7, 3] = bad
    experts.backend = NativeBackend()
    answer = experts(token, plan)
    assert not answer[7].isfinite().all()
    assert answer[torch.arange(40) != 7].isfinite().all()


def layer_of(experts, **options) -> MHMoE:
    torch.manual_seed(3)
    return MHMoE(24, 2, 3, experts=partial(experts, hidden=8, **options))


@pytest.mark.parametrize("experts", FORMS.values())
@pytest.mark.parametrize("options", [{"sub_norm": True}, {"quantization": BitNet()}])
def test_what_cannot_be_fused_is_refused_in_a_sentence_or_falls_back_when_told(experts, options):
    x = torch.randn(2, 5, 24)
    reason = r"more than two products and an activation.*Use GroupedBackend, or .*fallback=True"
    with pytest.raises(ValueError, match=reason):
        layer_of(experts, backend=NativeBackend, **options)(x)
    expected = layer_of(experts, backend=GroupedBackend, **options)(x)[0]
    told = partial(NativeBackend, fallback=True)
    for backend in (told, AutoBackend):
        assert torch.equal(layer_of(experts, backend=backend, **options)(x)[0], expected)


def test_other_precisions_and_devices_are_refused():
    layer, x = layer_of(GeluExperts, backend=NativeBackend), torch.randn(2, 5, 24)
    with pytest.raises(ValueError, match=r"knows float32 and bfloat16, .* torch.float16"):
        layer.half()(x.half())
    reason = NativeBackend().unfit(x.to("meta"))
    assert reason == "it computes on a CPU, and the tokens are on meta"


def test_blocks_are_even():
    for block in (0, 3):
        with pytest.raises(ValueError, match=f"even number of rows for NativeBackend, got {block}"):
            NativeBackend(block)


def test_experts_have_it_where_nothing_else_is_said_and_grouped_products_elsewhere():
    x = torch.randn(2, 5, 24)
    usual = layer_of(GeluExperts)
    assert isinstance(usual.moe.experts.backend, AutoBackend)
    assert torch.equal(usual(x)[0], layer_of(GeluExperts, backend=NativeBackend)(x)[0])
    grouped = layer_of(GeluExperts, backend=GroupedBackend).half()
    assert torch.equal(usual.half()(x.half())[0], grouped(x.half())[0])


def forget():
    """What was built, asked for and said in this process."""
    for known in (native_build.library, native_ops._unfit, backend_auto._warn):
        known.cache_clear()


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Nothing was built yet, and libraries are kept in a folder of the test's."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "kept"))
    forget()
    yield tmp_path
    forget()


def compiler(folder: Path, script: str) -> str:
    file = folder / "compiler"
    file.write_text(f"#!{sys.executable}\nimport sys, pathlib, shutil\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IEXEC)
    return str(file)


def test_without_a_compiler_it_says_so_and_the_usual_backend_warns_once(fresh, monkeypatch):
    monkeypatch.setenv("CXX", str(fresh / "none"))
    x = torch.randn(2, 5, 24)
    with pytest.raises(ValueError, match=r"there is no C\+\+ compiler .*none.*install g\+\+.*CXX"):
        layer_of(GeluExperts, backend=NativeBackend)(x)
    layer = layer_of(GeluExperts)
    told = r"GroupedBackend, which is slower on a CPU: .*no C\+\+ compiler"
    with pytest.warns(UserWarning, match=told):
        answer = layer(x)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(layer(x)[0], answer)
    assert torch.equal(layer_of(GeluExperts, backend=GroupedBackend)(x)[0], answer)


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(fresh, monkeypatch):
    told = "if '--version' not in sys.argv: sys.exit('experts.cpp:1: no such thing')"
    monkeypatch.setenv("CXX", compiler(fresh, told))
    with pytest.raises(native_build.NotBuilt, match=r"does not compile .*\n.*1: no such thing"):
        native_build.library()
    assert not list((fresh / "kept" / "mhmoe_mm").iterdir())


def test_what_cannot_be_loaded_is_an_error_that_names_the_file(fresh, monkeypatch):
    script = "pathlib.Path(sys.argv[sys.argv.index('-o') + 1]).write_text('no library')"
    monkeypatch.setenv("CXX", compiler(fresh, f"if '-o' in sys.argv: {script}"))
    with pytest.raises(
        native_build.NotBuilt, match=r"cannot be loaded: .*; remove .*kept.*\.so, and"
    ):
        native_build.library()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(fresh, monkeypatch):
    (fresh / "kept").mkdir(mode=0o500)
    with pytest.raises(
        native_build.NotBuilt, match=r"kept.* cannot be written.*TORCH_EXTENSIONS_DIR"
    ):
        native_build.library()


def test_a_folder_that_is_a_file_is_named(fresh):
    (fresh / "kept").write_text("")
    with pytest.raises(
        native_build.NotBuilt, match=r"kept.* cannot be written.*TORCH_EXTENSIONS_DIR"
    ):
        native_build.library()


def test_a_library_is_compiled_once_and_anew_when_what_it_is_made_of_changes(fresh, monkeypatch):
    real = native_build.library()._name  # compiled here for once, then copied
    script = f"""
log = pathlib.Path({str(fresh / "log")!r})
if '-o' in sys.argv:
    log.write_text(log.read_text() + 'x' if log.exists() else 'x')
    shutil.copy({real!r}, sys.argv[sys.argv.index('-o') + 1])
"""
    monkeypatch.setenv("CXX", compiler(fresh, script))
    for _ in range(2):
        native_build.library.cache_clear()
        assert native_build.library()._name != real
    assert (fresh / "log").read_text() == "x"
    monkeypatch.setattr(native_build, "FLAGS", (*native_build.FLAGS, "-DOTHER"))
    native_build.library.cache_clear()
    native_build.library()
    assert (fresh / "log").read_text() == "xx"
