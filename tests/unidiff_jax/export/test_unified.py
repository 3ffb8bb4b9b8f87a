"""The unified layout: names, shapes and sizes go out and come back; what is refused, and why."""

import ast
import json
import pathlib
import sys

import numpy as np
import pytest
import tiny_run
from safetensors.numpy import load_file
from unified_models import PATCH, VARIANTS, dit_config, flow_config, random_params

from unidiff_jax import load_denoiser
from unidiff_jax.config import ConfigError
from unidiff_jax.export import unified
from unidiff_jax.export.files import open_tensors, write_model
from unidiff_jax.export.mapping import MappingError, flatten
from unidiff_jax.export.run import choose_layout
from unidiff_jax.export.unified import from_unified, unified_values, write_unified
from unidiff_jax.mesh import make_mesh, parameter_shardings
from unidiff_jax.train.initial import check_released, load_released
from unidiff_jax.train.workdir import model_configs, model_parts

SOURCE = pathlib.Path(unified.__file__).with_name("torch_unified.py")


def values_of(dit, variant="joint"):
    return unified_values(
        dit, patch=PATCH, flow=flow_config(variant), shift=3.0, autoencoder={"kind": "any"}
    )


def write(folder, variant):
    dit = dit_config(variant)
    params = random_params(dit)
    write_unified(folder, params, dit=dit, values=values_of(dit, variant))
    return dit, params


@pytest.mark.parametrize("variant", VARIANTS)
def test_sizes_and_weights_come_back(variant, tmp_path):
    dit, params = write(tmp_path, variant)
    found = from_unified(tmp_path)
    assert found.dit == dit
    assert found.values["flow"]["timed_conditions"] == flow_config(variant).timed_conditions
    expected, params = flatten(params), flatten(found.params)
    assert params.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(params[path], value, err_msg=path)


def test_names_and_shapes_are_pytorchs(tmp_path):
    dit, params = write(tmp_path, "dual_guided")
    tensors = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    dim, kv_dim = dit.hidden_dim, dit.num_kv_heads * dit.head_dim
    shapes = {
        "patch_embed.weight": (dim, dit.patch_dim + dit.guidance_dim),
        "blocks.0.attention.q.weight": (dim, dim),
        "blocks.1.attention.k.weight": (kv_dim, dim),
        "blocks.1.text.ffn.gate.weight": (dit.ffn_dim, dim),
        "blocks.0.text.modulation.bias": (4 * dim,),
        "blocks.0.attention.q_norm.weight": (dim,),
        "asset_in.weight": (dit.text_dim, dit.asset_dim),
        "role_embed.weight": (3, dim),
        "name_embed.weight": (20, dim),
        "out.weight": (dit.patch_dim, dim),
    }
    assert {name: tensors[name].shape for name in shapes} == shapes
    assert not any(name.startswith("blocks.2.") for name in tensors)
    gate = params["blocks"]["text"]["ffn"]["gate"]["weight"][1]
    np.testing.assert_array_equal(tensors["blocks.1.text.ffn.gate.weight"], gate.T)
    np.testing.assert_array_equal(tensors["role_embed.weight"], params["role_embed"]["weight"])


def test_the_file_says_all_that_the_module_reads(tmp_path):
    values = json.loads(json.dumps(values_of(dit_config("cross"))))
    classes = {n.name: n for n in ast.parse(SOURCE.read_text()).body if isinstance(n, ast.ClassDef)}

    def fields(name):
        return {node.target.id for node in classes[name].body if isinstance(node, ast.AnnAssign)}

    assert fields("UnifiedConfig") <= values.keys()
    assert fields("Flow") == values["flow"].keys()
    assert f'SCHEMA = "{values["schema"]}"' in SOURCE.read_text()


def test_the_module_is_a_copy_that_needs_torch_and_safetensors(tmp_path):
    write(tmp_path, "joint")
    copy = tmp_path / "modeling_unidiff.py"
    assert copy.read_bytes() == SOURCE.read_bytes()
    modules = set()
    for node in ast.walk(ast.parse(copy.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules.add(node.module.split(".")[0])
    assert modules - sys.stdlib_module_names == {"torch", "safetensors"}


def test_large_models_lie_in_several_files(tmp_path):
    tensors = {f"t{i}": np.full((4, i + 1), i, np.float32) for i in range(6)}
    write_model(tmp_path, tensors, config={}, max_file_bytes=100)
    files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert files == [f"diffusion_pytorch_model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    assert set(load_file(tmp_path / files[0])) == {"t0", "t1", "t2"}  # 96 bytes
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * 4 * 21
    found = open_tensors(tmp_path)
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name][:], value)


def test_folders_that_are_refused(tmp_path):
    write(tmp_path, "joint")
    with pytest.raises(ConfigError, match=r"schema 'unidiff_dit/1' is not in OneDiffusion's"):
        load_denoiser(tmp_path)
    config = tmp_path / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"depth": 3}))
    with pytest.raises(MappingError, match=r"no tensor blocks\.2\.attention\.q\.weight"):
        from_unified(tmp_path)
    config.write_text(json.dumps(values | {"schema": "unidiff_dit/2"}))
    with pytest.raises(ConfigError, match=r"'unidiff_dit/2' is unknown; this code reads"):
        from_unified(tmp_path)
    del values["fusion"], values["patch"]
    config.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="lacks fusion, patch"):
        from_unified(tmp_path)


# --------------------------------------------------------------------------------- runs and layouts

RELEASED = {
    "flow.prediction": "v",
    "flow.loss": "v",
    "model.rope_theta": 10000.0,
    "model.rope_scale": 1.0,
}


def run_config(changes, *overrides):
    config = tiny_run.config(pathlib.Path("data"), *overrides).unlock()
    for key, value in changes.items():
        section, _, name = key.partition(".")
        config[section][name] = value
    return config.lock()


def layout_of(changes, layout=None):
    config = run_config(RELEASED | changes)
    return choose_layout(config, model_configs(config)[0], layout)


def test_the_layout_is_the_released_one_where_that_can_be():
    assert layout_of({}) == ("released", [])
    assert layout_of({"model.softcap": 30.0}).name == "released"
    assert layout_of({}, layout="unified").name == "unified"
    with pytest.raises(ConfigError, match="layout='other' is unknown; one of released, unified"):
        layout_of({}, layout="other")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("flow.prediction", "x", r"flow\.prediction='x', the layout means 'v'"),
        ("flow.timed_conditions", False, r"flow\.timed_conditions=False"),
        ("model.fusion", "joint", r"model\.fusion='joint'"),
        ("model.rope_theta", 20.0, r"model\.rope_theta=20\.0"),
        ("model.softcap", 5.0, r"model\.softcap=5\.0"),
        ("model.shared_modulation", True, r"model\.shared_modulation=True"),
        ("data.guidance", "channels", r"data\.guidance='channels'"),
    ],
)
def test_what_the_released_layout_cannot_say(key, value, reason):
    found = layout_of({key: value})
    assert found.name == "unified" and len(found.faults) == 1
    with pytest.raises(ConfigError, match=rf"{reason}.*; --layout unified has it"):
        layout_of({key: value}, layout="released")


def test_the_released_layout_has_no_references():
    identity = {"encoder": "pixels", "path": "", "dim": 7}
    found = layout_of({"data.guidance": "channels", "data.identity": identity})
    assert len(found.faults) == 2 and "data.identity is set" in found.faults[1]


@pytest.mark.parametrize("lora", [0, 2])
def test_a_run_starts_from_a_unified_folder(lora, tmp_path):
    settings = (f"lora.rank={lora}", f"init.transformer={tmp_path}")
    config = run_config({"model.fusion": "joint"}, *settings)
    dit, _ = model_configs(config)
    params = random_params(dit)
    values = unified_values(
        dit, patch=config.patch, flow=flow_config("joint"), shift=1.0, autoencoder={}
    )
    write_unified(tmp_path, params, dit=dit, values=values)
    check_released(config)
    model = model_parts(config)
    shardings = parameter_shardings(
        model.shapes, model.axes, rules=config.mesh.rules, mesh=make_mesh(config.mesh.axes)
    )
    found = flatten(load_released(config, model, shardings=shardings))
    assert found.keys() == {f"dit/{path}" for path in flatten(params)}
    for path, value in flatten(params).items():
        np.testing.assert_array_equal(np.asarray(found[f"dit/{path}"]), value, err_msg=path)
    with pytest.raises(ConfigError, match=r"model\.fusion is 'dual', the folder's 'joint'"):
        check_released(run_config({"model.fusion": "dual"}, *settings))
