"""Commands of the project as processes that share compiled programs."""

import os
import pathlib
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]


def start(module, *args, compiled, devices=1, **settings):
    """`python -m launch.MODULE` on so many simulated devices; settings are those of Popen.

    `compiled` is a folder for compiled programs.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    return subprocess.Popen(
        [sys.executable, "-m", f"launch.{module}", *args],
        cwd=ROOT,
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        },
        **settings,
    )


def start_job(module, *args, processes, devices, compiled, folder):
    """Processes of one job; each has its output in a file, `process.log`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    started = []
    for i in range(processes):
        which = [f"--distributed={i}/{processes}@127.0.0.1:{port}"] if processes > 1 else []
        log = folder / f"{module}-{port}-{i}.log"
        with log.open("w") as file:
            process = start(
                module,
                *which,
                *args,
                compiled=compiled,
                devices=devices,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        process.log = log
        started.append(process)
    return started


def wait_for(condition, *processes):
    """Returns when the condition holds; the processes must not end before."""
    while not condition():
        for process in processes:
            assert process.poll() is None, output(process)[-3000:]
        time.sleep(0.02)


def output(process):
    """What an ended process said, of errors alone where it has pipes."""
    return process.log.read_text() if hasattr(process, "log") else process.communicate()[1]
