"""Options that save memory, in numbers of a device."""

import jax
import pytest
import tiny_run

from launch import hlo
from launch.efficiency import bytes_a_device, efficiency, efficiency_report
from unidiff_jax.train.program import make_program, state_shapes

STEP = """ENTRY %main (a: s8[8,16], b: s8[16,8], c: bf16[8,8]) -> bf16[8,8] {
  %a = s8[8,16]{1,0} parameter(0)
  %b = s8[16,8]{1,0} parameter(1)
  %c = bf16[8,8]{1,0} parameter(2)
  %dot.1 = s32[8,8]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %dot.2 = bf16[8,8]{1,0} dot(%c, %c), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""


def found(*settings, host_bytes=0):
    config = tiny_run.config("nowhere", "optim.name=adamw", *settings)
    state = state_shapes(config, make_program(config))
    options = efficiency(config, state, hlo.parse(STEP), host_bytes=host_bytes)
    return options, efficiency_report(options), bytes_a_device(state.params)


def test_nothing_is_on():
    options, report, params = found()
    assert options["train.num_microbatches"] == {"value": 1, "gradient_bytes": 0}
    assert options["optim.moments"] == {
        "value": "float32",
        "bytes": 2 * params,
        "saved_bytes": 0,
    }
    assert options["optim.memory"]["saved_bytes"] == 0
    assert "optim.memory=device: moments stay on the device" in report


def test_what_options_save():
    options, report, params = found(
        "optim.moments=bfloat16",
        "optim.memory=host",
        "train.num_microbatches=2",
        "model.quantized=int8",
        host_bytes=1234567,
    )
    assert options["train.num_microbatches"]["gradient_bytes"] == params
    assert options["model.quantized"] == {"value": "int8", "products": 2, "products_in_8_bits": 1}
    assert options["optim.moments"]["bytes"] == options["optim.moments"]["saved_bytes"] == params
    assert options["optim.memory"] == {
        "value": "host",
        "host_bytes": 1234567,
        "saved_bytes": params,
    }
    assert "1 of 2 products of the compiled step in 8 bits" in report
    assert "host memory takes 1.18 MiB by the compiled step" in report


def test_bytes_are_of_one_device():
    mesh = jax.sharding.AbstractMesh((4,), ("fsdp",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    cut = jax.ShapeDtypeStruct((8, 3), "float32", sharding=place)
    assert bytes_a_device({"cut": cut}) == 8 * 3 * 4 // 4


@pytest.mark.slow
def test_a_compiled_step_tells():
    pytest.importorskip("libtpu", reason="the TPU compiler: ./launch/environment.sh tpu")
    from launch.plan import load_topology, plan_train
    from unidiff_jax.config import load_config

    settings = ["optim.memory=host", "model.quantized=int8", "model.dtype=bfloat16"]
    config = load_config("configs/onediffusion.py:tiny", overrides=settings)
    options = plan_train(config, load_topology("v5e:2x2"))["options"]
    moments = options["optim.moments"]["bytes"]
    # arrays are padded to tiles of the TPU
    assert moments <= options["optim.memory"]["host_bytes"] <= 2 * moments
    assert options["optim.memory"]["saved_bytes"] == moments
    assert 0 < options["model.quantized"]["products_in_8_bits"]
