"""Reading programs: how often what runs, against programs written down here and against XLA's own counts."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.plan.hlo.collectives import find_collectives
from bertjax.plan.hlo.costs import matmul_flops, memory_bytes
from bertjax.plan.hlo.module import HloModule, attention_kernel, custom_kernels, parse_arrays

# A loop of four around one gather and one reduction; the gather is spread over two fusions, as TPU programs are.
HLO = """HloModule jit_step

%start (p: bf16[2,8]) -> bf16[8,8] {
  %p = bf16[2,8]{1,0} parameter(0)
  %all-gather.1 = bf16[8,8]{1,0} all-gather(%p), channel_id=1, frontend_attributes={chain_id="0"}
}

%done (p: bf16[2,8]) -> bf16[8,8] {
  %p = bf16[2,8]{1,0} parameter(0)
  %all-gather.2 = bf16[8,8]{1,0} all-gather(%p), channel_id=1, frontend_attributes={chain_id="0"}
}

%all-reduce-scatter.1 (p: f32[8,8]) -> f32[2,8] {
  %p = f32[8,8]{1,0} parameter(0)
  %all-reduce.7 = f32[8,8]{1,0} all-reduce(%p), to_apply=%add
}

%body (s: (s32[], bf16[2,8])) -> (s32[], bf16[2,8]) {
  %f.1 = bf16[8,8]{1,0} fusion(%s), kind=kCustom, calls=%start
  %f.2 = bf16[8,8]{1,0} fusion(%f.1), kind=kCustom, calls=%done
  %f.3 = f32[2,8]{1,0} fusion(%f.2), kind=kCustom, calls=%all-reduce-scatter.1
  %c.1 = bf16[8,8]{1,0} custom-call(%f.2), custom_call_target="tpu_custom_call", metadata={op_name="splash_mha_fwd"}
}

%condition (s: (s32[], bf16[2,8])) -> pred[] {
  %n = s32[]{:T(128)} constant(4)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: bf16[2,8]) -> f32[] {
  %while.1 = (s32[], bf16[2,8]{1,0}) while(%t), condition=%condition, body=%body
  %all-reduce.9 = (f32[4]{0}, f32[]) all-reduce(%x, %y), to_apply=%add
}
"""


def sums(module: HloModule, of: str) -> dict[str, int]:
    """{kind: count or bytes} of a program's collectives."""
    found: Counter[str] = Counter()
    for one in find_collectives(module):
        found[one.kind] += getattr(one, of)
    return dict(found)


def test_collectives_and_kernels_are_counted_as_often_as_they_run():
    kib = 2**-10
    module = HloModule.parse(HLO)
    assert custom_kernels(module) == {"splash_mha_fwd": 4} and attention_kernel(custom_kernels(module)) == "splash"
    counts = sums(module, "count")
    assert counts == {"all-gather": 4, "reduce-scatter": 4, "all-reduce": 1}
    large = HloModule.parse(HLO.replace("8,8]", "8192,8]"))
    mib = {kind: round(size / 2**20, 2) for kind, size in sums(large, "bytes").items()}
    assert mib["all-gather"] == pytest.approx(4 * 8192 * 8 * 2 * kib**2)
    assert mib["reduce-scatter"] == pytest.approx(4 * 8192 * 8 * 4 * kib**2)


def test_the_compiler_s_own_trip_count_comes_first():
    told = HLO.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert custom_kernels(HloModule.parse(told)) == {"splash_mha_fwd": 7}


def test_a_kernel_is_known_by_its_operation_too():
    """libtpu 0.0.51 breaks the line inside the kernel's attributes, before the metadata."""
    broken = HLO.replace("%c.1 =", "%splash_mha_dkv.1 =").replace(
        ', metadata={op_name="splash_mha_fwd"}', ", frontend_attributes={kernel_metadata={\n}}"
    )
    found = custom_kernels(HloModule.parse(broken))
    assert found == {"splash_mha_dkv": 4} and attention_kernel(found) == "splash"


def test_a_kernel_counts_the_flops_that_it_states():
    """Those of `fused_attention`, also where the line is broken; splash attention states none."""
    stated = '"cost_estimate":{"bytes_accessed":"7","flops":"1000"}'
    broken = HLO.replace("%c.1 =", "%jvp_fused_attention_forward_.1 =").replace(
        ', metadata={op_name="splash_mha_fwd"}',
        ", frontend_attributes={kernel_metadata={\n}}, backend_config={" + stated + "}",
    )
    found = custom_kernels(HloModule.parse(broken))
    assert found == {"fused_attention_forward": 4} and attention_kernel(found) == "fused"
    assert matmul_flops(HloModule.parse(broken)) == 4 * 1000 and matmul_flops(HloModule.parse(HLO)) == 0


def test_triton_kernels_are_known_by_their_name():
    target = 'custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(f)/transpose(jvp(%s))/pallas_call"}'
    old = 'custom_call_target="tpu_custom_call", metadata={op_name="splash_mha_fwd"}'
    for name in ("fused_attention_forward", "fused_attention_backward_key", "fused_attention_backward_bias"):
        found = custom_kernels(HloModule.parse(HLO.replace(old, target % name)))
        assert found == {name: 4} and attention_kernel(found) == "fused"


def test_every_branch_counts_once():
    text = """ENTRY %main (a: f32[2]) -> f32[2] {
  %c = f32[2] conditional(%i, %a, %a), branch_computations={%one, %two}
}

%one (a: f32[2]) -> f32[2] {
  %r.1 = f32[2] all-reduce(%a), to_apply=%add
}

%two (a: f32[2]) -> f32[2] {
  %r.2 = f32[2] all-reduce(%a), to_apply=%add
}
"""
    assert sums(HloModule.parse(text), "count")["all-reduce"] == 2


def test_a_type_s_arrays_and_where_they_lie():
    found = parse_arrays("(bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[]{:T(128)}, pred[3])")
    assert [(a.dtype, a.shape, a.in_vmem, a.bytes) for a in found] == [
        ("bf16", (8, 128), True, 2048), ("f32", (), False, 4), ("pred", (3,), False, 3),
    ]  # fmt: skip


def compiled(function, *shapes):
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()


def test_matrix_products_are_xla_s_count():
    program = compiled(lambda a, b, c: jnp.einsum("bij,bjk->bik", a, b) @ c, (3, 16, 32), (3, 32, 8), (8, 40))
    flops = matmul_flops(HloModule.parse(program.as_text()))
    assert flops == 2 * 3 * (16 * 32 * 8 + 16 * 8 * 40)
    assert flops == pytest.approx(program.cost_analysis()["flops"], rel=0.01)


def test_a_loop_s_products_count_each_time():
    """XLA's own count takes a loop's body once."""

    def scanned(x, stack):
        return jax.lax.scan(lambda carry, w: (jnp.tanh(carry @ w), None), x, stack)[0]

    program = compiled(scanned, (8, 16), (12, 16, 16))
    assert matmul_flops(HloModule.parse(program.as_text())) == 12 * 2 * 8 * 16 * 16


@settings(max_examples=15, deadline=None)
@given(
    st.integers(3, 7), st.integers(1, 3), st.integers(1, 2), st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.integers(1, 2), st.integers(1, 3),
)  # fmt: skip
def test_convolutions_are_xla_s_count(size, window, stride, padding, holes, filters):
    """With strides, padding and holes, which is how the TPU compiler writes batched matrix products."""
    if size + (size - 1) * (holes - 1) + sum(padding) < window:
        return

    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (stride,), [padding], lhs_dilation=(holes,))

    text = jax.jit(convolve).lower(
        jax.ShapeDtypeStruct((2, 3, size), jnp.float32), jax.ShapeDtypeStruct((filters, 3, window), jnp.float32)
    )
    module = HloModule.parse(text.compiler_ir("hlo").as_hlo_module().to_string())
    assert matmul_flops(module) == text.cost_analysis().get("flops", 0)


def test_memory_is_read_and_written_once_by_a_fusion():
    program = compiled(lambda x, y: jnp.tanh(x + y) * x, (256, 256), (256, 256))
    assert (
        memory_bytes(HloModule.parse(program.as_text()))
        == 3 * 4 * 256 * 256
        == program.cost_analysis()["bytes accessed"]
    )


def test_a_loop_over_a_stack_reads_a_slice_each_time():
    def scanned(x, stack):
        return jax.lax.scan(lambda carry, row: (carry + row, None), x, stack)[0]

    moved = memory_bytes(HloModule.parse(compiled(scanned, (1024,), (100, 1024)).as_text()))
    once = 4 * 1024 * 100
    assert (
        3 * once <= moved <= 6 * once
    )  # row, carry and sum of each turn; the whole stack each turn would be 100 times


# As the TPU compiler writes it: fusions inside of fusions, and results that are operands with one row replaced.
NESTED = """HloModule jit_step

%copy (p: f32[12,64]) -> f32[12,64] {
  %p.1 = f32[12,64]{1,0} parameter(0)
  ROOT %c.1 = f32[12,64]{1,0} copy(%p.1)
}

%row (p: f32[12,64], i: s32[]) -> f32[64] {
  %p.2 = f32[12,64]{1,0} parameter(0)
  %i.2 = s32[] parameter(1)
  %d.2 = f32[1,64]{1,0} dynamic-slice(%p.2, %i.2, %z), dynamic_slice_sizes={1,64}
  ROOT %b.2 = f32[64]{0} bitcast(%d.2)
}

%replace (p: f32[12,64], i: s32[], x: f32[64], q: f32[12,64]) -> f32[12,64] {
  %p.3 = f32[12,64]{1,0} parameter(0)
  %i.3 = s32[] parameter(1)
  %x.3 = f32[64]{0:S(1)} parameter(2)
  %q.3 = f32[12,64]{1,0} parameter(3)
  %f.3 = f32[12,64]{1,0} fusion(%p.3), kind=kLoop, output_to_operand_aliasing={{}: (0, {})}, calls=%copy
  %r.3 = f32[64]{0} fusion(%q.3, %i.3), kind=kLoop, calls=%row
  %a.3 = f32[1,64]{1,0} add(%x.3, %r.3)
  ROOT %u.3 = f32[12,64]{1,0} dynamic-update-slice(%f.3, %a.3, %i.3, %z)
}

ENTRY %main (p: f32[12,64], i: s32[], x: f32[64], q: f32[12,64]) -> f32[12,64] {
  %p = f32[12,64]{1,0} parameter(0)
  %i = s32[]{:S(1)} parameter(1)
  %x = f32[64]{0:S(1)} parameter(2)
  %q = f32[12,64]{1,0} parameter(3)
  %s = ((f32[12,64]{1,0}), f32[3,64]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%q), slice={[0:3], [0:64]}
  %n = f32[12,64]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %f = f32[12,64]{1,0} fusion(%p, %i, %x, %q), kind=kLoop, calls=%replace
}
"""


def test_memory_of_nested_fusions_is_what_they_touch():
    """A row read of q, a row written of p, nothing of x, which lies beside the cores; and three rows of q fetched."""
    assert memory_bytes(HloModule.parse(NESTED)) == 4 * 64 * (1 + 1 + 3)
