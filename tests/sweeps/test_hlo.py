"""Small programs as XLA writes them, with costs that can be counted by hand."""

import pytest

from periodic_jax.sweeps.flops import Window
from periodic_jax.sweeps.hlo import Shape, parse
from periodic_jax.sweeps.traffic import Cost, chunk_cost, layer_of


def entry(*lines, before=""):
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m, is_scheduled=true\n\n{before}\nENTRY %main (x: f32[4]) -> f32[4] {{\n{body}\n}}\n"


def cost(*lines, before="", every=1):
    return chunk_cost(entry(*lines, before=before), measured_every=every).total


def test_an_instruction_is_taken_apart():
    line = (
        "ROOT %f.1 = (f32[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/(s8[4]{0}, u32[]{:S(2)})) fusion(%a, %b.2), "
        'kind=kLoop, calls=%inner, metadata={op_name="jit(chunk)/conv0/mul" stack_frame_id=3}'
    )
    instruction = parse(entry(line)).root("main")
    assert (instruction.name, instruction.opcode, instruction.operands) == ("f.1", "fusion", ("a", "b.2"))
    assert instruction.shapes == (Shape("f32", (2, 3), True), Shape("s8", (4,)), Shape("u32", ()))
    assert [shape.nbytes for shape in instruction.shapes] == [24, 4, 4]
    assert [shape.traffic for shape in instruction.shapes] == [0, 4, 4]
    assert (instruction.called, instruction.op_name) == ("inner", "jit(chunk)/conv0/mul")


def test_operands_and_results_are_counted_and_names_for_parts_are_not():
    found = cost(
        "%x = f32[100]{0} parameter(0)",
        "%y = f32[100]{0} negate(%x)",
        "%t = (f32[100]{0}, f32[100]{0}) tuple(%x, %y)",
        "%z = f32[100]{0} get-tuple-element(%t), index=0",
        "ROOT %w = bf16[100]{0} add(%y, %z)",
    )
    assert found == Cost(bytes=400 + 400 + 800 + 200, launches=2)


SLICING = """
%fused (p0: f32[1000,10], p1: s32[], p2: f32[10]) -> f32[10] {
  %p0 = f32[1000,10]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[10]{0} parameter(2)
  %cut = f32[1,10]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,10}
  %flat = f32[10]{0} bitcast(%cut)
  ROOT %sum = f32[10]{0} add(%flat, %p2)
}
"""
UPDATING = """
%fused (p0: f32[1000,10], p1: f32[1,10], p2: s32[]) -> f32[1000,10] {
  %p0 = f32[1000,10]{1,0} parameter(0)
  %p1 = f32[1,10]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %new = f32[1000,10]{1,0} dynamic-update-slice(%p0, %p1, %p2, %p2)
}
"""
GATHERING = """
%fused (p0: u8[50000,12], p1: s32[128]) -> f32[128,12] {
  %p0 = u8[50000,12]{1,0} parameter(0)
  %p1 = s32[128]{0} parameter(1)
  %taken = u8[128,12]{1,0} gather(%p0, %p1), offset_dims={1}, slice_sizes={1,12}
  ROOT %float = f32[128,12]{1,0} convert(%taken)
}
"""


def test_slices_updates_in_place_and_gathers_count_as_what_they_touch():
    x, i = "%x = f32[1000,10]{1,0} parameter(0)", "%i = s32[] parameter(1)"
    row, fused = "%r = f32[10]{0} parameter(2)", "kind=kLoop, calls=%fused"
    assert cost(x, i, row, f"ROOT %y = f32[10]{{0}} fusion(%x, %i, %r), {fused}", before=SLICING).bytes == 40 * 3 + 4
    update = "%r = f32[1,10]{1,0} parameter(2)"
    found = cost(x, i, update, f"ROOT %y = f32[1000,10]{{1,0}} fusion(%x, %r, %i), {fused}", before=UPDATING)
    assert found.bytes == 40 * 2 + 4
    images = "%x = u8[50000,12]{1,0} parameter(0)", "%i = s32[128]{0} parameter(1)"
    found = cost(*images, f"ROOT %y = f32[128,12]{{1,0}} fusion(%x, %i), {fused}", before=GATHERING)
    assert found.bytes == 128 * 12 + 128 * 4 + 128 * 12 * 4


def test_memory_beside_the_cores_is_not_counted_and_cycles_are():
    found = cost(
        "%x = f32[100]{0} parameter(0)",
        "%c = (f32[100]{0:S(1)}, f32[100]{0}, u32[]{:S(2)}) copy-start(%x)",
        "%d = f32[100]{0:S(1)} copy-done(%c)",
        'ROOT %y = f32[100]{0:S(1)} negate(%d), backend_config={"estimated_cycles":"77"}',
    )
    assert found == Cost(bytes=400, launches=2, cycles=77)
    sliced = "%c = ((f32[100]{0}), f32[10]{0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:10]}"
    assert cost("%x = f32[100]{0} parameter(0)", sliced).bytes == 40


def loop(name, condition, body, config=""):
    return f"%{name} = (s32[], f32[100]) while(%t), condition=%{condition}, body=%{body}{config}"


def computation(name, *lines):
    return "\n".join([f"%{name} (p: (s32[], f32[100])) -> (s32[], f32[100]) {{", *(f"  {x}" for x in lines), "}", ""])


PART = "%p = (s32[], f32[100]) parameter(0)", "%v = f32[100]{0} get-tuple-element(%p), index=1"
NEGATE = computation("inner", *PART, '%n = f32[100]{0} negate(%v), metadata={op_name="a/jvp(Net)/conv1/neg"}')
UNTIL_7 = computation(
    "until", *PART[:1], "%i = s32[] get-tuple-element(%p), index=0", "%c = s32[] constant(7)",
    "ROOT %l = pred[] compare(%i, %c), direction=LT",
)  # fmt: skip
FOR_EVER = computation("bound", *PART[:1], "ROOT %l = pred[] compare(%p, %p), direction=LT")


def test_loops_count_as_often_as_they_run():
    before = NEGATE + UNTIL_7
    x = "%t = (s32[], f32[100]) parameter(0)"
    config = ', backend_config={"known_trip_count":{"n":"5"}}'
    assert cost(x, loop("w", "until", "inner", config), before=before) == Cost(bytes=4000, launches=5)
    assert cost(x, loop("w", "until", "inner"), before=before) == Cost(bytes=5600, launches=7)
    module = parse(entry(x, loop("w", "bound", "inner"), before=NEGATE + FOR_EVER))
    assert module.trip_count(module.computations["main"]["w"]) is None


def test_a_step_is_told_from_what_is_done_once_in_a_chunk():
    """Two loops with bounds that only the run knows: the one with the products is that of the training."""
    product = "%d = f32[100,100]{1,0} dot(%v, %v), lhs_contracting_dims={}, rhs_contracting_dims={}"
    training = computation("training", *PART, product, loop("w", "until", "inner").replace("%t", "%p"))
    before = NEGATE + UNTIL_7 + FOR_EVER + training
    loops = loop("permute", "bound", "inner"), loop("train", "bound", "training")
    lines = "%t = (s32[], f32[100]) parameter(0)", *loops, "%k = f32[100]{0} copy(%t)"
    found = chunk_cost(entry(*lines, before=before), ["conv1"])
    assert found.step["conv1"] == Cost(bytes=7 * 800, launches=7)
    assert found.total == Cost(bytes=7 * 800 + 800 + 40000, launches=8, flops=20000)
    assert found.outside == Cost(bytes=800 + 400 + 404, launches=2)


def test_a_measurement_counts_in_the_steps_that_make_it():
    one = computation("yes", *PART, "%n = f32[100]{0} negate(%v)")
    none = computation("no", "%p = (s32[], f32[100]) parameter(0)", "%z = f32[]{} negate(%p)")
    lines = "%t = (s32[], f32[100]) parameter(0)", "%q = s32[] parameter(1)"
    for branches in ("branch_computations={%no, %yes}", "true_computation=%yes, false_computation=%no"):
        lines = (*lines[:2], f"ROOT %c = f32[100] conditional(%q, %t, %t), {branches}")
        dear = cost(*lines, before=one + none)
        assert dear == Cost(bytes=800, launches=1)
        assert cost(*lines, before=one + none, every=10).bytes == pytest.approx(80 + 0.9 * (4 + 404))


def of_product(line, *shapes):
    operands = [f"%{name} = {shape} parameter({i})" for i, (name, shape) in enumerate(zip("xy", shapes, strict=True))]
    return cost(*operands, line).flops


@pytest.mark.parametrize(
    ("line", "shapes", "expected"),
    [
        ("%z = f32[5,7]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
         ("f32[5,3]", "f32[3,7]"), 2 * 5 * 7 * 3),
        ("%z = f32[4,5,7] dot(%x, %y), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, "
         "rhs_contracting_dims={1}", ("f32[4,5,3]", "f32[4,3,7]"), 2 * 4 * 5 * 7 * 3),
        ('%z = (f32[5,7], s8[999]) custom-call(%x, %y), custom_call_target="__cublas$gemm", backend_config='
         '{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}',
         ("f32[5,3]", "f32[3,7]"), 2 * 5 * 7 * 3),
        ("%z = f32[2,8,8,6] convolution(%x, %y), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
         ("f32[2,8,8,4]", "f32[3,3,4,6]"), 2 * 2 * 6 * 4 * 22**2),
        ("%z = f32[2,8,8,6] convolution(%x, %y), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, "
         "feature_group_count=2", ("f32[2,8,8,4]", "f32[3,3,2,6]"), 2 * 2 * 6 * 2 * 22**2),
        # what a stride of two leaves, and the same backwards, where every second place is a hole
        ("%z = f32[2,4,4,6] convolution(%x, %y), window={size=1x1 stride=2x2}, dim_labels=b01f_01io->b01f",
         ("f32[2,8,8,4]", "f32[1,1,4,6]"), 2 * 2 * 6 * 4 * 4**2),
        ("%z = f32[2,8,8,4] convolution(%x, %y), window={size=1x1 pad=0_1x0_1 lhs_dilate=2x2}, "
         "dim_labels=b01f_01oi->b01f", ("f32[2,4,4,6]", "f32[1,1,4,6]"), 2 * 2 * 6 * 4 * 4**2),
        # the kernel's gradient as a convolution over images: the batch takes the place of the features
        ("%z = f32[3,3,4,6] convolution(%x, %y), window={size=8x8 pad=1_1x1_1}, dim_labels=f01b_i01o->01bf",
         ("f32[2,8,8,4]", "f32[2,8,8,6]"), 2 * 2 * 6 * 4 * 22**2),
    ],
)  # fmt: skip
def test_operations_follow_from_shapes(line, shapes, expected):
    assert of_product(line, *shapes) == expected


@pytest.mark.parametrize(
    ("target", "result", "shapes"),
    [
        ("convForward", "f32[2,8,8,6]", ("f32[2,8,8,4]", "f32[3,3,4,6]")),
        ("convBiasActivationForward", "f32[2,8,8,6]", ("f32[2,8,8,4]", "f32[3,3,4,6]")),
        ("convBackwardInput", "f32[2,8,8,4]", ("f32[2,8,8,6]", "f32[3,3,4,6]")),
        ("convBackwardFilter", "f32[3,3,4,6]", ("f32[2,8,8,4]", "f32[2,8,8,6]")),
    ],
)
def test_calls_of_a_library_do_what_the_convolution_does(target, result, shapes):
    line = (
        f"%z = ({result}, u8[1000]) custom-call(%x, %y), window={{size=3x3 pad=1_1x1_1}}, "
        f'dim_labels=b01f_01io->b01f, custom_call_target="__cudnn${target}"'
    )
    assert of_product(line, *shapes) == 2 * 2 * 6 * 4 * 22**2


def test_products_within_a_fusion_are_counted():
    before = """
%fused (p0: f32[5,3], p1: f32[3,7]) -> f32[5,7] {
  %p0 = f32[5,3]{1,0} parameter(0)
  %p1 = f32[3,7]{1,0} parameter(1)
  ROOT %d = f32[5,7]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
    x, y = "%x = f32[5,3]{1,0} parameter(0)", "%y = f32[3,7]{1,0} parameter(1)"
    found = cost(x, y, "ROOT %z = f32[5,7]{1,0} fusion(%x, %y), kind=kCustom, calls=%fused", before=before)
    assert found == Cost(bytes=4 * (15 + 21 + 35), launches=1, flops=210)


def test_a_window_meets_inputs_only():
    assert Window(3, low=1).products(4, 4) == 2 + 3 + 3 + 2
    assert Window(3, stride=2, low=1).products(4, 2) == 2 + 3
    assert Window(2, low=1, holes=2).products(3, 6) == sum(p % 2 == 0 for o in range(6) for p in (o - 1, o) if p >= 0)


def test_layers_are_found_in_the_names_of_operations():
    layers = "conv0", "conv1", "head"
    assert layer_of("jit(chunk)/while/body/transpose(jvp(Net))/conv1/mul;jit(chunk)/x", layers) == "conv1"
    assert layer_of("jit(chunk)/while/body/jvp(Net)/reduce_max", layers) == "loss and rest of the network"
    assert layer_of("jit(chunk)/while/body/Net.prepare/dot_general", layers) == "input pipeline"
    assert layer_of("", layers) == "update and records"


def test_a_copy_without_a_name_belongs_to_what_uses_it():
    named = 'metadata={op_name="jit(chunk)/jvp(Net)/conv0/mul"}'
    text = entry(
        "%x = f32[100]{0} parameter(0)",
        "%c = f32[100]{0} copy(%x)",
        "%d = f32[100]{0} copy(%c)",
        f"ROOT %y = f32[100]{{0}} multiply(%d, %d), {named}",
    )
    assert chunk_cost(text, ["conv0"]).step == {"conv0": Cost(bytes=800 + 800 + 1200, launches=3)}
