"""Sampling: any subset of an example's frames is given, the rest is generated.

    pipe = Pipeline.from_workdir("runs/quickstart")
    result = pipe("depth", image=Image.open("photo.png"))
    result["depth"].save("depth.png")
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from data_pipelines.mixture import ExampleMaker
from unidiff_jax import flow
from unidiff_jax.frames import CODECS, Placed, RowSize, pack_rows, unpatchify
from unidiff_jax.mesh import make_mesh, parameter_shardings
from unidiff_jax.models.autoencoder import SpaceToDepth
from unidiff_jax.models.dit import DiTConfig
from unidiff_jax.models.t5 import T5Config
from unidiff_jax.sample import guidance
from unidiff_jax.sample.solvers import integrate, sigma_schedule
from unidiff_jax.tasks import Task, get_task
from unidiff_jax.text import Tokenizer
from unidiff_jax.train.checkpoint import Checkpoints
from unidiff_jax.train.state import UnifiedModel, abstract_model
from unidiff_jax.types import Batch, Noised, Params, take_rows
