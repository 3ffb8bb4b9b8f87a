"""Meshes from configs, and which axis of an array goes where."""

import json
import os
import pathlib
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import Mesh, PartitionSpec

from configs.meshes import PRESETS, RULES, get_mesh
from unidiff_jax.config import ConfigError
from unidiff_jax.mesh import AXES, logical_spec, make_mesh

ROOT = pathlib.Path(__file__).resolve().parents[2]


def spec(axes, shape, **sizes):
    """The partition on a mesh of these sizes, made of one device many times."""
    devices = np.full([sizes.get(axis, 1) for axis in AXES], jax.devices()[0])
    return logical_spec(axes, shape, rules=RULES, mesh=Mesh(devices, AXES))


@pytest.mark.parametrize(
    ("axes", "shape", "sizes", "expected"),
    [
        (("embed", "ffn"), (64, 32), {"fsdp": 4, "tensor": 2}, ("fsdp", "tensor")),
        (("embed", "ffn"), (64, 32), {"fsdp": 4}, ("fsdp",)),  # an axis of size 1 is not named
        (("embed", "ffn"), (66, 32), {"fsdp": 4, "tensor": 2}, (None, "tensor")),  # 66 % 4
        (("condition", "embed"), (64, 64), {"fsdp": 4}, ("fsdp",)),  # an axis is used once
        (("condition", "embed"), (66, 64), {"fsdp": 4}, (None, "fsdp")),  # the first that fits
        (
            ("layers", "embed", "heads"),
            (2, 64, 64),
            {"fsdp": 2, "tensor": 2},
            (None, "fsdp", "tensor"),
        ),
        (("embed", "ffn"), (64, 32), {"fsdp": 2, "seq": 4}, (("fsdp", "seq"),)),
        (("embed", "ffn"), (66, 32), {"fsdp": 2, "seq": 4}, ("fsdp",)),  # 66 % 8
        (("embed", "ffn"), (64, 32), {"seq": 4, "tensor": 2}, ("seq", "tensor")),
        (("heads",), (4,), {"tensor": 8}, ()),
        (("unknown", None), (8, 8), {"fsdp": 8}, ()),
    ],
)
def test_logical_axes(axes, shape, sizes, expected):
    assert spec(axes, shape, **sizes) == PartitionSpec(*expected)


def of_two(platform):
    """Eight chips of two nodes or slices, as JAX describes them in a job.

    There is a process for each GPU, and one for four TPU chips.
    """
    kind = {"gpu": "NVIDIA H100 80GB HBM3", "tpu": "TPU v5e"}[platform]
    devices = [
        mock.Mock(
            id=i,
            platform=platform,
            device_kind=kind,
            process_index=i if platform == "gpu" else i // 4,
            slice_index=i // 4,
            coords=(i % 2, i % 4 // 2, 0),
            core_on_chip=0,
        )
        for i in range(8)
    ]
    for device in devices:
        device.__class__ = jax.Device
    return devices


def test_nodes_of_gpus_take_every_axis():
    for axes in ({"fsdp": -1}, {"data": 2, "fsdp": 4}, {"fsdp": 2, "tensor": 4}):
        mesh = make_mesh(axes, devices=of_two("gpu"))
        assert [device.id for device in mesh.devices.flat] == list(range(8))


def test_between_slices_only_data():
    mesh = make_mesh({"data": 2, "fsdp": -1}, devices=of_two("tpu"))
    slices = [{device.slice_index for device in replica.flat} for replica in mesh.devices]
    assert slices == [{0}, {1}]
    with pytest.raises(ConfigError, match="multiple of the 2 slices"):
        make_mesh({"fsdp": -1}, devices=of_two("tpu"))


def test_one_device_takes_every_preset():
    for preset in PRESETS:
        axes = dict(get_mesh(preset).axes)
        if all(size in (1, -1) for size in axes.values()):
            assert make_mesh(axes).shape == dict.fromkeys(AXES, 1)
    mesh = make_mesh({})
    assert isinstance(mesh, Mesh) and mesh.axis_names == AXES


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"data": 3}, r"mesh.axes \(data=3, fsdp=1, seq=1, tensor=1\) does not multiply to 1 dev"),
        (
            {"data": -1, "tensor": 2},
            r"tensor=2\) does not multiply to 1 devices; for .*fsdp=-1",
        ),
        ({"data": 0}, "does not multiply"),
        ({"data": -1, "fsdp": -1}, "only one axis can be -1"),
        ({"pipe": 2}, r"unknown axes \['pipe'\]; axes are data, fsdp, seq, tensor"),
    ],
)
def test_meshes_that_cannot_be(axes, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(axes)


def test_the_suggested_mesh_works():
    with pytest.raises(ConfigError) as caught:
        make_mesh({"tensor": 2})
    words = str(caught.value).split("--set mesh.axes.")[1:]
    make_mesh({k: int(v) for k, v in (word.split("=") for word in words)})


def test_unknown_preset():
    with pytest.raises(ConfigError, match=r"mesh preset 'fast'.*fsdp, data, tensor, fsdp_tensor2"):
        get_mesh("fast")


def test_every_parameter_has_an_axis_name_for_each_dimension():
    model, _, state, _ = tiny.make_state()
    pairs = jax.tree.map(lambda p, names: (p.ndim, len(names)), state.params, model.axes)
    for ndim, count in jax.tree.leaves(pairs, is_leaf=lambda x: isinstance(x, tuple)):
        assert ndim == count


SCRIPT = """
import json, sys
import jax
from unidiff_jax.mesh import make_mesh
found = []
for axes in json.loads(sys.argv[1]):
    try:
        found.append(list(make_mesh(axes).shape.values()))
    except ValueError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def test_eight_devices():
    asked = [
        {"fsdp": -1},
        {"data": -1, "tensor": 2},
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"data": 3, "fsdp": -1},
        {"data": 4},
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(asked)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
        check=True,
    )
    *good, third, fourth = json.loads(done.stdout)
    assert good == [[1, 8, 1, 1], [4, 1, 1, 2], [2, 2, 1, 2]]
    assert "data=3, fsdp=-1, seq=1, tensor=1) does not multiply to 8 devices" in third
    assert "data=4" in fourth
    assert np.prod(good, axis=1).tolist() == [8, 8, 8]
