"""What is read from a compiled program's text, against programs whose traffic is known."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import hlo
from launch.chips import CHIPS, bandwidth, parse_topology, torus_links
from unidiff_jax.config import ConfigError

ROOT = pathlib.Path(__file__).resolve().parents[2]

# eight devices: weights over an axis are gathered in a scanned loop of six layers, their gradients
# summed; and one sum over all devices at the end
SCRIPT = """
import json, sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from launch import hlo
mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
def place(*spec):
    return NamedSharding(mesh, P(*spec))
def run(x, weights):
    def layer(x, weight):
        return jnp.tanh(x @ jax.lax.with_sharding_constraint(weight, place())), None
    if sys.argv[1] == "scan":
        x, _ = jax.lax.scan(layer, x, weights)
    else:
        for weight in weights:
            x, _ = layer(x, weight)
    return jnp.sum(x)
x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=place(("data", "fsdp")))
weights = jax.ShapeDtypeStruct((6, 32, 32), jnp.float32, sharding=place(None, "fsdp"))
program = hlo.parse(jax.jit(run).lower(x, weights).compile().as_text())
print(json.dumps([c._asdict() | {"sent": c.sent} for c in hlo.collectives(program)]))
"""


@pytest.mark.parametrize("form", ["scan", "unrolled"])
def test_collectives_of_a_program(form):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, form],
        cwd=ROOT,
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    gathers = [c for c in found if c["kind"] == "all-gather"]
    assert sum(c["count"] for c in gathers) == 6
    assert all(len(c["group"]) == 4 for c in gathers)
    sent = sum(c["sent"] for c in gathers)
    assert sent == 6 * 32 * 32 * 4 * 3 / 4  # a layer's weight, but for one's own quarter
    sums = [c for c in found if c["kind"] == "all-reduce"]
    assert len(sums) == 1 and len(sums[0]["group"]) == 8
    assert sums[0]["sent"] == 2 * 7 / 8 * 4


TEXT = """HloModule jit_run

%body (arg: (s32[], bf16[8,128], bf16[5,128,128])) -> (s32[], bf16[8,128], bf16[5,128,128]) {
  %arg = (s32[], bf16[8,128]{1,0:T(8,128)}, bf16[5,128,128]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = bf16[8,128]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %stack = bf16[5,128,128]{2,1,0} get-tuple-element(%arg), index=2
  %fusion = bf16[128,128]{1,0} fusion(%stack, %i), kind=kLoop, calls=%slice
  %near = bf16[128,128]{1,0:S(1)} copy(%fusion)
  %dot = bf16[8,128]{1,0} dot(%x, %near), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %sum = bf16[8,128]{1,0} all-reduce(%dot), channel_id=3, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  ROOT %out = (s32[], bf16[8,128]{1,0}, bf16[5,128,128]{2,1,0}) tuple(%i, %sum, %stack)
}

%slice (p: bf16[5,128,128], i: s32[]) -> bf16[128,128] {
  %p = bf16[5,128,128]{2,1,0} parameter(0)
  %j = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = bf16[1,128,128]{2,1,0} dynamic-slice(%p, %j, %zero, %zero), dynamic_slice_sizes={1,128,128}
  ROOT %b = bf16[128,128]{1,0} bitcast(%one)
}

%condition (arg: (s32[], bf16[8,128], bf16[5,128,128])) -> pred[] {
  %arg = (s32[], bf16[8,128]{1,0}, bf16[5,128,128]{2,1,0}) parameter(0)
  %limit = s32[] constant(5)
  %i = s32[] get-tuple-element(%arg), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %s = bf16[] add(%a, %b)
}

ENTRY %main (x: bf16[8,128], w: bf16[5,128,128]) -> bf16[8,128] {
  %x = bf16[8,128]{1,0} parameter(0)
  %w = bf16[5,128,128]{2,1,0} parameter(1)
  %zero = s32[] constant(0)
  %t = (s32[], bf16[8,128]{1,0}, bf16[5,128,128]{2,1,0}) tuple(%zero, %x, %w)
  %loop = (s32[], bf16[8,128]{1,0}, bf16[5,128,128]{2,1,0}) while(%t), condition=%condition, body=%body
  ROOT %y = bf16[8,128]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_a_loop_counts_as_often_as_it_turns():
    program = hlo.parse(TEXT)
    assert hlo.runs(program)["%body"] == 5
    (found,) = hlo.collectives(program)
    assert found.count == 5 and found.num_bytes == 8 * 128 * 2
    assert found.group == (0, 2, 4, 6)


def test_traffic_counts_slices_and_leaves_near_memory_out():
    layer, tokens = 128 * 128 * 2, 8 * 128 * 2
    expected = 2 * layer + 4  # the fusion: one layer read and written, and the number of it
    expected += layer  # the copy reads it and writes near memory
    expected += 2 * tokens  # the product reads and writes tokens; its weight is near
    expected += 2 * tokens  # the sum
    condition = 4 + 4 + 1
    assert hlo.hbm_bytes(hlo.parse(TEXT)) == 5 * (expected + condition)


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("replica_groups={{0,1},{2,3}}", (0, 1)),
        ("replica_groups=[2,2]<=[4]", (0, 1)),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", (0, 2)),
        ("replica_groups=mesh['a'=2,'b'=3] {'b'}", (0, 1, 2)),
        ("replica_groups=mesh['a'=2,'b'=3] {'a'}", (0, 3)),
        ("source_target_pairs={{0,1},{1,0}}", (0, 1)),
        ("source_target_pairs={{0,0},{1,2},{2,1}}", (1, 2)),  # 0 keeps its own
        ("source_target_pairs={{0,0},{1,1}}", (0,)),
    ],
)
def test_forms_of_groups(groups, first):
    assert hlo._group(f"%x = f32[2] all-reduce(%y), {groups}, to_apply=%add") == first


def test_attributes_over_several_lines():
    """A Pallas kernel's attributes have line breaks, and a line may begin with a bracket."""
    kernel = (
        '  %k = bf16[8,128]{1,0} custom-call(%dot), frontend_attributes={kernel={\n"a":"b"\n}}\n'
    )
    text = TEXT.replace("  %sum =", kernel + "  %sum =")
    assert len(hlo.collectives(hlo.parse(text))) == 1
    with pytest.raises(ValueError, match="without a result"):
        hlo.parse(TEXT.replace("ROOT %out", "%out"))


STARTED = """
  %start = ((bf16[2,128]{1,0}, f32[4]{0}), (bf16[8,128]{1,0}, /*index=1*/f32[16]{0})) all-gather-start(%x, %y), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
  %done = (bf16[8,128]{1,0}, f32[16]{0}) all-gather-done(%start)
  %started = f32[16]{0} all-reduce-start(%z), channel_id=2, replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %end = f32[16]{0} all-reduce-done(%started)
"""  # noqa: E501


def test_collectives_that_are_started_and_awaited():
    program = hlo.parse(f"ENTRY %main (x: f32[]) -> f32[16] {{{STARTED}}}\n")
    gather, reduce = hlo.collectives(program)
    assert gather.num_bytes == 8 * 128 * 2 + 16 * 4 and reduce.num_bytes == 16 * 4
    assert gather.shape == "bf16[8,128] f32[16]"
    # what is not in the text, here the operands, does not count
    assert hlo.hbm_bytes(program) == gather.num_bytes + reduce.num_bytes


PRODUCTS = """
  %a = s8[8,16]{1,0} parameter(0)
  %b = s8[16,8]{1,0} parameter(1)
  %c = f32[16,8]{1,0} parameter(2)
  %narrow = s32[8,8]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %mixed = f32[8,8]{1,0} dot(%a, %c), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %called = (f32[8,8]{1,0}, s8[64]{0}) custom-call(%c, %c), custom_call_target="__cublas$gemm"
"""


def test_products_and_those_of_8_bits():
    program = hlo.parse(f"ENTRY %main (x: f32[]) -> f32[16] {{{PRODUCTS}}}\n")
    assert hlo.products(program) == (3, 1)
    assert hlo.products(hlo.parse(TEXT)) == (5, 0)  # one in a loop of five


def test_a_loop_of_unknown_length_is_told():
    with pytest.raises(ValueError, match="unknown length"):
        hlo.runs(hlo.parse(TEXT.replace("direction=LT", "direction=NE")))


def test_traffic_is_near_what_xla_counts():
    """For a program without loops."""

    def run(x, w):
        y = jnp.tanh(x @ w)
        return y @ w, jnp.sum(y, 0)

    compiled = jax.jit(run).lower(jnp.zeros((256, 128)), jnp.zeros((128, 128))).compile()
    counted = compiled.cost_analysis()["bytes accessed"]
    assert hlo.hbm_bytes(hlo.parse(compiled.as_text())) == pytest.approx(counted, rel=0.3)


def test_links_of_a_slice():
    assert torus_links((4, 4, 4), CHIPS["v5p"]) == [2, 2, 2]
    assert torus_links((2, 2, 1), CHIPS["v5p"]) == [1, 1, 0]
    assert torus_links((8, 8), CHIPS["v6e"]) == [1, 1]
    assert torus_links((16, 16), CHIPS["v6e"]) == [2, 2]
    places = [np.asarray((x, y, 0)) for x in range(4) for y in range(4)]
    v5p = CHIPS["v5p"]
    assert bandwidth(places, slices=[0] * 16, sides=(4, 4, 4), chip=v5p) == 4 * v5p.link
    assert bandwidth(places[:4], slices=[0] * 4, sides=(4, 4, 4), chip=v5p) == 2 * v5p.link
    assert bandwidth(places, slices=[0, 1] * 8, sides=(4, 4, 4), chip=v5p) == v5p.network
    assert bandwidth(places[:1] * 8, slices=[0] * 8, sides=(8,), chip=CHIPS["h100"]) == 450e9
    assert parse_topology("v5p:4x4x8") == ("v5p", (4, 4, 8))
    assert parse_topology("h100:8") == ("h100", (8,))
    for name in ("v5p", "v9:2x2", "v5e:2xa", "h100", "h100:2x4", "h100:0"):
        with pytest.raises(ConfigError, match="is unknown; a generation"):
            parse_topology(name)


def test_two_devices_share_a_chip():
    chip = CHIPS["tpu7x"]
    line = [np.asarray((x, 0, 0)) for x in range(4)]

    def rate(places):
        return bandwidth(places, slices=[0] * len(places), sides=(4, 4, 4), chip=chip)

    assert rate(line[:1] * 2) == chip.inside
    assert rate([place for place in line for _ in range(2)]) == 2 * chip.link  # one ring of eight
    assert rate(line) == chip.link  # two rings of four, over the same links


SEND = """HloModule jit_run, entry_computation_layout={(bf16[16,8,128])->bf16[16,8,128]}

ENTRY %main (p: bf16[16,8,128]) -> bf16[16,8,128] {
  %p = bf16[16,8,128]{2,1,0} parameter(0)
  %after-all = token[] after-all()
  %send = (bf16[16,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) send(%p, %after-all), channel_id=5, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:63}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %out = bf16[16,8,128]{2,1,0} copy(%p)
}
"""  # noqa: E501


def test_sums_between_slices_are_counted():
    (found,) = hlo.collectives(hlo.parse(SEND))
    assert (found.kind, found.group, found.count) == ("all-reduce", (0, 64), 1)
    assert found.sent == 16 * 8 * 128 * 2
