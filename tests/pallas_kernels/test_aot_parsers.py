"""What the ahead-of-time tool reads out of the compiler's texts."""

from pathlib import Path

import pytest

from pallas_kernels import aot_compile, aot_kernels, aot_report
from pallas_kernels.aot_hlo import Module
from pallas_kernels.aot_mosaic import mosaic_dumps, parse_launch, parse_ptxas, read_mosaic_dumps
from pallas_kernels.aot_step import load_provider
from pallas_kernels.aot_thunks import parse_thunks, read_thunks
from pallas_kernels.tuning import fits

THUNKS = """\
000: kCommandBuffer [source       | next=087 (1)]
    001: kCopy         [source       | next=002 (1)] kCopy
    002: kCustomKernel [prev=001 (1) | next=003 (1)] loop_fusion_1 grid: [1, 1, 1] threads: [8, 1, 1]
    039: kConditional  [prev=036 (1) | next=040 (1)]
      false_branch:
        037: kCustomKernel [source | sink] loop_select_fusion grid: [8016, 1, 1]
    040: kCustomKernel [prev=039 (1) | next=041 (1)] input_reduce grid: [2004, 1, 1]
064: kWhile         [prev=000 (1) | next=072 (1)]
condition:
    065: kCustomKernel [source | sink] loop_compare_fusion grid: [1, 1, 1]
  body:
    000: kCommandBuffer [source | sink]
        066: kCustomKernel [source       | next=067 (1)] loop_add_fusion grid: [1, 1, 1]
072: kCustomCall   [prev=064 (1) | sink        ] kCustomCall
"""  # noqa: E501
METADATA = """
thunk_metadata {
  thunk_info {
    profile_annotation: "wrapped_slice"
    thunk_id: 1
  }
  thunk_kind: "kCopy"
}
"""
PTXAS = """\
ptxas info    : Compiling entry function 'body' for 'sm_90a'
    136 bytes stack frame, 100 bytes spill stores, 36 bytes spill loads
ptxas info    : Used 168 registers, used 2 barriers, 1 bytes smem
"""
PASSES = (
    "%130 = gpu.launch async [%0] blocks(%a, %b, %c) in (%d = %c4, %e = %c1_0, %f = %c8_1) "
    "threads(%g, %h, %i) in (%j = %c128, %k = %c3_2, %l = %c1_3) "
    "dynamic_shared_memory_size %c40968_i32 {"
)
HLO = """\
HloModule jit_step, is_scheduled=true

%fused_scatter (param_0: bf16[64,2], param_1: s32[4], param_2: bf16[4,2]) -> bf16[64,2] {
  %param_0 = bf16[64,2]{1,0} parameter(0)
  %param_1 = s32[4]{0} parameter(1)
  %param_2 = bf16[4,2]{1,0} parameter(2)
  ROOT %scatter.1 = bf16[64,2]{1,0} scatter(%param_0, %param_1, %param_2), to_apply=%assign
}

%fused_dot (param_3: bf16[4,2], param_4: bf16[64,2]) -> f32[4,64] {
  %param_3 = bf16[4,2]{1,0} parameter(0)
  %param_4 = bf16[64,2]{1,0} parameter(1)
  ROOT %dot.1 = f32[4,64]{1,0} dot(%param_3, %param_4), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}

%fused_transpose (param_5: bf16[64,2]) -> bf16[2,64] {
  %param_5 = bf16[64,2]{1,0} parameter(0)
  ROOT %transpose.1 = bf16[2,64]{1,0} transpose(%param_5), dimensions={1,0}
}

%branch (arg: (bf16[2,64])) -> (bf16[2,64]) {
  %arg = (bf16[2,64]{1,0}) parameter(0)
  %get.1 = bf16[2,64]{1,0} get-tuple-element(%arg), index=0
  %copy.9 = bf16[2,64]{1,0} copy(%get.1)
  ROOT %tuple.1 = (bf16[2,64]{1,0}) tuple(%copy.9)
}

ENTRY %main (pool: bf16[64,2], ids: s32[4], new: bf16[4,2], flag: pred[]) -> (bf16[64,2], (bf16[2,64])) {
  %pool = bf16[64,2]{1,0} parameter(0)
  %ids = s32[4]{0} parameter(1)
  %new = bf16[4,2]{1,0} parameter(2)
  %flag = pred[] parameter(3)
  %write = bf16[64,2]{1,0} fusion(%pool, %ids, /*index=2*/%new), kind=kInput, calls=%fused_scatter, metadata={op_name="jit(step)/scatter"}
  %multiply = f32[4,64]{1,0:S(5)} fusion(%new, %write), kind=kCustom, calls=%fused_dot
  %turn = bf16[2,64]{1,0} fusion(%write), kind=kLoop, calls=%fused_transpose
  %pack = (bf16[2,64]{1,0}) tuple(%turn)
  %choice = (bf16[2,64]{1,0}) conditional(%flag, %pack, %pack), true_computation=%branch, false_computation=%branch
  %call = bf16[4,2]{1,0} custom-call(%new, %write), custom_call_target="mosaic_gpu_v2", backend_config={kernel_hash = "a(b", module = "%c = ("}
  ROOT %tuple.2 = (bf16[64,2]{1,0}, (bf16[2,64]{1,0})) tuple(%write, %choice)
}
"""  # noqa: E501


def test_thunks_know_what_is_around_them() -> None:
    thunks = {thunk.number: thunk for thunk in parse_thunks(THUNKS) if thunk.number}
    assert thunks[2].is_in_graph and not thunks[2].is_conditional
    assert thunks[37].is_in_graph and thunks[37].is_conditional
    assert thunks[40].parents == ("kCommandBuffer",)
    assert thunks[66].parents == ("kWhile", "kCommandBuffer")
    assert not thunks[72].is_in_graph and thunks[72].is_kernel
    assert thunks[2].kernel == "loop_fusion_1"
    assert [thunk.kind for thunk in parse_thunks(THUNKS)].count("kCommandBuffer") == 2


def test_thunks_get_the_names_of_their_instructions(tmp_path: Path) -> None:
    (tmp_path / "m.thunk_sequence.txt").write_text(THUNKS)
    (tmp_path / "m.thunk_metadata.txt").write_text(METADATA)
    assert read_thunks(tmp_path)[1].instruction == "wrapped_slice"


def test_a_missing_dump_says_what_may_have_happened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="XLA wrote no thunk sequence"):
        read_thunks(tmp_path)


def test_spills_are_stores_and_loads() -> None:
    assert parse_ptxas(PTXAS) == (168, 136, 136)
    with pytest.raises(ValueError, match=r"not a log of ptxas -v"):
        parse_ptxas("nothing")


def test_the_launch_is_read_from_names_of_constants() -> None:
    assert parse_launch(PASSES) == (40968, 384, (4, 1, 8))
    assert parse_launch("") == (0, 0, ())


def test_kernels_come_in_the_order_of_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOSAIC_GPU_DUMP_TO", "elsewhere")
    with mosaic_dumps(tmp_path):
        for number in (10, 9):
            (tmp_path / f"body_{number}.ptxas").write_text(PTXAS.replace("168", str(number)))
    (tmp_path / "body_9.sass_ctrl").write_text("  HGMMA.64x128x16.F32.BF16 R24\n")
    nine, ten = read_mosaic_dumps(tmp_path)
    assert (nine.registers, ten.registers) == (9, 10)
    assert (nine.has_hgmma, nine.has_utmaldg, ten.has_hgmma) == (True, False, False)


def test_only_what_is_launched_counts() -> None:
    module = Module(HLO)
    assert {item.name for item in module.launches} == {
        "write", "multiply", "turn", "call", "copy.9",
    }  # fmt: skip
    assert module.num_mosaic_calls == 1
    assert module.launches[0].op_name == "jit(step)/scatter"
    with pytest.raises(ValueError, match="not an HLO module"):
        Module("")


def test_a_copy_is_seen_in_a_fusion_and_in_a_branch_but_an_update_in_place_is_none() -> None:
    moved = Module(HLO).moved(frozenset({128}))
    assert {item.name for item in moved} == {"turn", "copy.9"}
    assert not Module(HLO).moved(frozenset({127}))


def test_unbalanced_text_is_refused() -> None:
    with pytest.raises(ValueError, match="unbalanced parentheses in HLO"):
        Module("ENTRY %main (a: f32[]) -> f32[] {\n  %a = (f32[] parameter(0)\n}\n")


def test_bytes_and_flops_of_a_launch() -> None:
    module = Module(HLO)
    entry = {item.name: item for item in module.entry.instructions}
    costs = {
        name: (module.bytes_moved(entry[name], entry), module.flops(entry[name]))
        for name in ("write", "multiply", "turn")
    }
    updates, ids, pool = 4 * 2 * 2, 4 * 4, 64 * 2 * 2
    assert costs["write"] == (updates + ids + updates, 0)
    assert costs["multiply"] == (updates + pool + 4 * 64 * 4, 2 * 4 * 64 * 2)
    assert costs["turn"] == (2 * pool, 0)


def test_the_roofline_is_the_longer_of_the_two() -> None:
    roofline = aot_report.Roofline(bytes_per_s=1e12, flops_per_s=1e15)
    assert roofline.seconds(2e9, 1e9) == pytest.approx(2e-3)
    assert roofline.seconds(2e3, 1e12) == pytest.approx(1e-3)
    assert [aot_report.human(n) for n in (12, 8.6e9, 2e13)] == ["12 B", "8.6 GB", "20 TB"]
    assert [aot_report.duration(s) for s in (5e-3, 1.2e-6)] == ["5.00 ms", "1.2 µs"]
    assert aot_report.table(("a", "b"), [("x", 10), ("yy", 1)]).splitlines() == [
        "a    b", "--  --", "x   10", "yy   1",
    ]  # fmt: skip


def test_grids_grow_and_hold_only_what_fits() -> None:
    suite, shapes, everything = (set(aot_kernels.grid(name)) for name in aot_kernels.GRIDS)
    assert shapes < everything and len(suite) < len(shapes)
    assert {case.op for case in suite} == set(aot_kernels.OPS)
    configured = [case for case in everything if case.op != "add_rms_norm" and case.config]
    assert configured and all(fits(case.config, case.shape) for case in configured)
    with pytest.raises(ValueError, match=r"--grid must be one of"):
        aot_kernels.grid("some")


def test_what_a_kernel_must_move() -> None:
    decode = aot_kernels.KernelCase(op="decode", num_rows=2, context=1000, head_dim=64, group=4,
                                    num_kv_heads=2)  # fmt: skip
    assert decode.num_bytes == 2 * (2 * 1000 * 2 * 64) * 2 + 2 * (2 * 8 * 64) * 2
    assert decode.flops == 4 * 8 * 64 * 2 * 1000
    extend = aot_kernels.KernelCase(op="extend", num_rows=1, num_tokens=4, context=4, head_dim=64,
                                    group=1, num_kv_heads=1)  # fmt: skip
    assert extend.flops == 4 * 64 * (1 + 2 + 3 + 4)
    norm = aot_kernels.NormCase(size=128, num_rows=2, num_parts=4)
    assert norm.num_bytes == 2 * 128 * (3 * 2 + 4 * 4)


def test_a_missing_assembler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(aot_compile.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match="no ptxas in this environment nor on PATH"):
        aot_compile.use_installed_ptxas()
    (tmp_path / "ptxas").write_text("#!/bin/sh\necho Cuda compilation tools, V13.5.37\n")
    (tmp_path / "ptxas").chmod(0o755)
    assert aot_compile.use_installed_ptxas() == "13.5.37"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("json", r"--provider must be module:function; got"),
        ("json:nothing", r"json has no function 'nothing'"),
    ],
)
def test_a_wrong_provider_is_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_provider(name)
