"""Scripts that train on real machines, without the machines.

The programs that reach them (gcloud, kubectl, sbatch, ...) are replaced by one that notes how it is
called. What a script calls, what its dry run prints and what a shell makes of that print have to be
the same.
"""

import ast
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from launch.chips import CHIPS
from launch.topologies import GENERATIONS, TopologyError, find_slice

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path for path in ROOT.glob("launch/**/*.sh") if path.name != "cluster.sh")
TOOLS = ("gcloud", "kubectl", "xpk", "sbatch", "srun", "scontrol", "squeue", "docker", "podman")

RUN = ("--config", "configs/unireal.py:stage=256", "--name", "first")
BUCKET = ("--workdir", "gs://bucket/runs/first")
VM = ("tpu/vm", *RUN, *BUCKET, "--topology=v5p:4x4x4", "--zone=us-east5-a")
IMAGE = ("--image", "us-docker.pkg.dev/project/repository/unidiff_jax:tpu")
GKE = ("tpu/gke", *RUN, *BUCKET, "--topology=v6e:8x8", *IMAGE)
XPK = ("tpu/xpk", *RUN, *BUCKET, "--topology=v5e:4x4", "--cluster=training", *IMAGE)
SLURM = ("gpu/slurm", *RUN, *BUCKET, "--nodes=2", "--time=1-00:00:00")
CONTAINER = ("container", "run", *RUN, "--workdir=gs://bucket/run", "--mount=data")
LAUNCHERS = (VM, GKE, XPK, SLURM, CONTAINER)
NAMES = [args[0] for args in LAUNCHERS]

# what shells, YAML and Kubernetes each have a meaning for
ODD = (
    'data.sources.a.path=my "own" pictures/it\'s*.jpg',
    'data.names=["a", "b: c", "#d"]',
    "note=$HOME $(HOME) $$ `id` \\n ${name} %s {} & | ; END",
    "two\nlines\tand \u00e9\U0001f600",
    "",
)

# Notes its name, arguments and input. Answers with the first line of $ANSWERS, written
# `pattern|status|text`, whose pattern is in the arguments, and takes that line away.
STAND_IN = """#!/bin/bash
input=
case "${0##*/} $*" in sbatch* | *filename=-*) input="$(cat)" ;; esac
printf '%s\\0' "$#" "${0##*/}" "$@" "$input" >>"$CALLS"
number=0
while IFS='|' read -r pattern status text; do
  number=$((number + 1))
  if [[ "${0##*/} $*" == *"$pattern"* ]]; then
    sed -i "${number}d" "$ANSWERS"
    echo "$text"
    exit "$status"
  fi
done <"$ANSWERS"
"""


class Machines:
    """A PATH on which every tool is the stand-in."""

    def __init__(self, folder):
        self.calls_file, self.answers_file = folder / "calls", folder / "answers"
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        for tool in (*TOOLS, "enroot", "git", "mkdir"):
            (bin_folder / tool).write_text(STAND_IN)
            (bin_folder / tool).chmod(0o755)
        self.environment = {
            "PATH": f"{bin_folder}:/usr/bin:/bin",
            "HOME": str(folder),
            "PYTHON": sys.executable,
            "CALLS": str(self.calls_file),
            "ANSWERS": str(self.answers_file),
        }
        self.reset()

    def reset(self, *answers):
        self.calls_file.write_bytes(b"")
        self.answers_file.write_text("".join(f"{line}\n" for line in answers))

    def run(self, command, **kwargs):
        return subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            **kwargs,
        )

    def launch(self, script, *args):
        return self.run([str(ROOT / "launch" / f"{script}.sh"), *args])

    @property
    def calls(self):
        """Name and arguments of each call, and its input."""
        words = self.calls_file.read_bytes().decode().split("\0")[:-1]
        calls = []
        while words:
            count = int(words[0])
            calls.append((words[1 : 2 + count], words[2 + count]))
            words = words[3 + count :]
        return calls


@pytest.fixture
def machines(tmp_path):
    return Machines(tmp_path)


def dry(machines, *args):
    """The output of a dry run, which calls nothing."""
    script, *rest = args
    done = machines.launch(script, "--dry-run", *rest)
    assert done.returncode == 0, done.stderr
    assert not machines.calls
    return done.stdout


def shellcheck(*args, **kwargs):
    program = shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent)
    program = program or shutil.which("shellcheck")
    if program is None:
        pytest.skip("no shellcheck: it is in the extra dev")
    done = subprocess.run(
        [program, *args], cwd=ROOT, capture_output=True, text=True, check=False, **kwargs
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_shellcheck():
    paths = [*SCRIPTS, ROOT / "launch/cluster.sh", ROOT / ".ci/run"]
    shellcheck("--external-sources", *map(str, paths))


def test_shellcheck_of_the_batch_script(machines):
    text = batch_script(machines, "--image=unidiff_jax.sqsh")
    shellcheck("--exclude=SC2329", "-", input=text)  # it overlooks that a trap calls a function


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help_from_anywhere(machines, tmp_path, path):
    assert path.stat().st_mode & 0o111
    done = machines.run([str(path), "--help"], cwd=tmp_path)
    assert done.returncode == 0 and not machines.calls
    assert done.stdout.startswith(f"usage: ./{path.relative_to(ROOT)}")


@pytest.mark.parametrize("args", LAUNCHERS, ids=NAMES)
def test_help_lists_every_option(machines, args):
    text = machines.launch(args[0], "--help").stdout
    assert max(map(len, text.splitlines())) <= 100
    known = re.search(r"there are (.*) --dry-run", machines.launch(args[0], "--no-such").stderr)[1]
    for option in (*known.split(), "--dry-run", "-- FLAG"):
        assert re.search(rf"^  (--.*, )?{option}\b", text, re.MULTILINE), f"{option} has no help"


def test_documented_commands_work(machines):
    text = (ROOT / "docs/launching.md").read_text()
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    commands = [line for line in blocks.replace("\\\n", " ").splitlines() if "./launch/" in line]
    assert {command.split()[0] for command in commands} == {
        f"./launch/{args[0]}.sh" for args in LAUNCHERS
    }
    for command in commands:
        script, rest = command.split(" ", 1)
        done = machines.run(["bash", "-c", f"{script} --dry-run {rest}"], cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert done.stdout and not machines.calls


@pytest.mark.parametrize("args", LAUNCHERS, ids=NAMES)
def test_a_dry_run_prints_what_is_run(machines, args):
    script, *rest = args
    rest += [word for odd in ODD for word in ("--set", odd)]
    rest += ["--", "--debug", *ODD]
    printed = dry(machines, script, *rest)

    machines.reset("describe|0|ACTIVE")
    done = machines.launch(script, *rest)
    assert done.returncode == 0, done.stderr
    called = machines.calls
    assert called
    if script == "tpu/vm":  # it looks whether anything would be left behind
        called.remove((["git", "status", "--porcelain"], ""))

    machines.reset()
    pasted = machines.run(["bash", "-e"], input=printed, cwd=ROOT)
    assert pasted.returncode == 0, pasted.stderr
    assert machines.calls == called


def train_command(python, *, distributed="auto"):
    """The words that every process of the runs above is."""
    words = ["env", "JAX_COMPILATION_CACHE_DIR=gs://bucket/runs/first/compilation_cache", python]
    words += ["-m", "launch.train", *RUN[:2], *BUCKET]
    words += [f"--distributed={distributed}"] if distributed else []
    for odd in ODD:
        words += ["--set", odd]
    return [*words, "--debug", *ODD]


ODD_ARGS = [*(word for odd in ODD for word in ("--set", odd)), "--", "--debug", *ODD]


def as_shell(text):
    """The words that a shell makes of a text."""
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    done = subprocess.run(
        ["bash", "-c", f'show() {{ "{sys.executable}" -c "$CODE" "$@"; }}; show {text}'],
        env={"CODE": code, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def as_kubernetes(text):
    """A word of a command as a container gets it, where no variable is defined."""
    return re.sub(r"\$\$|\$\([^)]*\)", lambda found: found[0].replace("$$", "$"), text)


def words_of_vm(machines):
    machines.launch(*VM, "start", *ODD_ARGS)
    ((call, _),) = machines.calls
    (remote,) = [word for word in call if word.startswith("--command=")]
    return as_shell(remote.removeprefix("--command="))


def words_of_gke(machines):
    yaml = pytest.importorskip("yaml")
    machines.launch(*GKE, *ODD_ARGS)
    ((_, text),) = machines.calls
    template = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    return [as_kubernetes(word) for word in template["spec"]["containers"][0]["command"]]


def words_of_xpk(machines):
    machines.launch(*XPK, *ODD_ARGS)
    ((call, _),) = machines.calls
    (inside,) = [word for word in call if word.startswith("--command=")]
    assert "\n" not in inside  # XPK puts it into an indented block of YAML
    return as_shell(as_kubernetes(inside.removeprefix("--command=")))


def words_of_slurm(machines):
    machines.launch(*SLURM, *ODD_ARGS)
    text = machines.calls[-1][1]
    (line,) = [line for line in text.splitlines() if line.startswith("srun")]
    return as_shell(line.removesuffix(" &"))


def words_of_container(machines):
    machines.launch("container", "run", *RUN, *BUCKET, *ODD_ARGS)
    return machines.calls[-1][0]


@pytest.mark.parametrize(
    ("words", "python", "before"),
    [
        (words_of_vm, ".venv/bin/python", ["./unidiff_jax/launch/tpu/worker.sh", "start"]),
        (words_of_gke, "python", []),
        (words_of_xpk, "python", []),
        (words_of_slurm, f"{ROOT}/.venv/bin/python", ["srun", "--kill-on-bad-exit=1"]),
    ],
)
def test_arguments_reach_training_as_they_are(machines, words, python, before):
    assert words(machines) == [*before, *train_command(python)]


def test_arguments_reach_the_container_as_they_are(machines):
    words = words_of_container(machines)
    assert words[words.index("env") :] == train_command("python", distributed="")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((*VM, "--topolgy", "v5p"), "unknown option --topolgy; there are --config --workdir"),
        ((*VM, "up"), "unexpected argument 'up'; --help lists the actions"),
        ((*SLURM, "now"), "unexpected argument 'now'; --help lists the options"),
        ((*VM, "--zone"), "--zone needs a value"),
        ((*VM, "--spot=yes"), "--spot takes no value"),
        ((*VM, "--zone=here"), "--zone cannot be 'here'; for example --zone us-east5-a"),
        ((*VM, "--name", "My Run"), "--name cannot be 'My Run'; for example --name unireal-256"),
        ((*VM, "--name", "a" * 41), "--name cannot be"),
        ((*VM, "--workdir", "runs/a"), "for example --workdir gs://bucket/runs/first"),
        ((*VM, "--config="), "--config is missing; for example --config configs/unireal.py:stage"),
        ((*VM, "--topology="), "--topology is missing; for example --topology v5p:4x4x4"),
        ((*VM, "--topology=v5p"), "--topology 'v5p' is unknown; a generation (v4, v5e, v5p, v6e"),
        ((*VM, "--topology=v5e:3x3"), "v5e has no slice '3x3' of at most 256 chips; there are 1x1"),
        ((*VM, "--topology=tpu7x:4x4x4"), "no TPU VMs of --topology tpu7x:4x4x4; use launch"),
        ((*VM, "--topology=v5p:4x4x16"), "no accelerator type of its own"),
        ((*VM, "--num_slices=0"), "--num_slices cannot be '0'; a whole number from 1 on"),
        ((*VM, "--max_restarts=many"), "--max_restarts cannot be 'many'; a whole number from 0 on"),
        ((*GKE, "--topology=v6e:2x4", "--num_slices=2"), "needs slices of several hosts"),
        ((*GKE, "--image=a b"), "--image cannot be 'a b'; for example --image us-docker.pkg.dev/"),
        (
            (*XPK, "--topology=v5e:2x2"),
            "--topology v5e:2x2 is unknown to XPK; use launch/tpu/gke.sh",
        ),
        ((*XPK, "--cluster="), "--cluster is missing; for example --cluster my-cluster"),
        ((*SLURM, "--time=soon"), "--time cannot be 'soon'; for example --time 1-00:00:00"),
        ((*SLURM, "--mounts=/a:/a"), "--mounts belongs to a container; for example --image"),
        (("container", "--extra=rocm"), "--extra cannot be 'rocm'; for example --extra cuda"),
        (("container", "--engine=lxc"), "--engine cannot be 'lxc'; for example --engine docker"),
    ],
)
def test_wrong_options_are_refused(machines, args, message):
    done = machines.launch(*args)
    assert done.returncode == 2 and not machines.calls
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"{args[0].split('/')[-1]}.sh: ")


def test_a_missing_tool_is_named(machines, tmp_path):
    shutil.rmtree(tmp_path / "bin")
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "dirname"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    machines.environment["PATH"] = str(tmp_path / "bin")
    done = machines.launch(*XPK)
    assert done.returncode == 2
    assert "xpk is not on the PATH; install it, or see the commands with --dry-run" in done.stderr


# ------------------------------------------------------------------------------------ TPU slices
@pytest.mark.parametrize(
    ("topology", "chips", "hosts", "accelerator_type"),
    [
        ("v5p:4x4x4", 64, 16, "v5p-128"),
        ("v5p:2x2x1", 4, 1, "v5p-8"),
        ("v5p:8x8x16", 1024, 256, "v5p-2048"),
        ("v4:4x4x8", 128, 32, "v4-256"),
        ("v5e:8x8", 64, 16, "v5litepod-64"),
        ("v5e:1x1", 1, 1, "v5litepod-1"),
        ("v5e:2x4", 8, 1, "v5litepod-8"),
        ("v5e:4x4", 16, 4, "v5litepod-16"),
        ("v6e:8x8", 64, 16, "v6e-64"),
        ("v6e:2x2", 4, 1, "v6e-4"),
        ("v6e:2x4", 8, 1, "v6e-8"),
        ("tpu7x:1x1x1", 1, 1, "tpu7x-2"),
        ("tpu7x:4x4x4", 64, 16, "tpu7x-128"),
        # the same number of chips as 4x8x8, which its accelerator type would give
        ("v5p:4x4x16", 256, 64, ""),
    ],
)
def test_slices(topology, chips, hosts, accelerator_type):
    found = find_slice(topology)
    assert (found.chips, found.hosts, found.accelerator_type) == (chips, hosts, accelerator_type)
    assert found.hosts * found.host_chips == chips


def test_the_most_compact_shape_has_the_accelerator_type():
    named = [f"{side}x{side}x{4 * k}" for side in (4, 8) for k in range(side // 4, 12)]
    named = [shape for shape in named if find_slice(f"v5p:{shape}").accelerator_type]
    assert named == [
        *("4x4x4", "4x4x8", "4x4x12", "4x4x20", "4x4x28", "4x4x44"),
        *("8x8x8", "8x8x12", "8x8x16", "8x8x20", "8x8x28", "8x8x44"),
    ]  # those of them that XPK lists as the shapes of v5p's accelerator types


@pytest.mark.parametrize(
    "topology",
    (
        *("", "v5p", "v5p:", "h100:8", "v5e:3x3", "v5e:1x1x1", "v6e:4x4x4", "v4:16x16x20"),
        *("v5p:8x4x4", "v5p:4x4x6", "v5p:04x4x4", "v5p:4x4", "v5p:0x4x4", "v5p:\u00b2x2x1"),
    ),
)
def test_slices_that_are_not_there(topology):
    with pytest.raises(TopologyError, match=r"is unknown; a generation|has no slices?\b"):
        find_slice(topology)


def test_generations_are_those_of_plan():
    assert {name for name, chip in CHIPS.items() if chip.wraps} == set(GENERATIONS)


# --------------------------------------------------------------------------------------- TPU VMs
def verbs(machines):
    """What was asked of gcloud, the scripts on the hosts by their actions."""
    found = []
    for call, _ in machines.calls:
        if call[0] == "gcloud":
            (verb,) = re.findall(r"worker\.sh (\w+)", " ".join(call)) or [call[4]]
            found.append(verb)
    return found


UP = ["create", "describe", "scp", "setup", "start", "follow"]


def test_vm_asks_for_what_the_options_say(machines):
    (create,) = [line for line in dry(machines, *VM, "create").splitlines()]
    assert create == (
        "gcloud compute tpus queued-resources create first --accelerator-type=v5p-128 "
        "--runtime-version=v2-alpha-tpuv5 --node-id=first --zone=us-east5-a"
    )
    text = dry(machines, *VM, "create", "--num-slices=4", "--spot", "--create_flag=--network=n")
    assert "--node-count=4 --node-prefix=first --spot --network=n --zone" in text


@pytest.mark.parametrize(
    ("answers", "status", "more"),
    [
        ([], 0, ["log", "delete"]),
        # training broke off
        (["follow|1|", "describe|0|ACTIVE", "running|1|"], 0, "describe running stop start follow"),
        # the connection broke
        (["follow|255|", "describe|0|ACTIVE", "running|0|"], 0, "describe running follow"),
        # the machines were taken away
        (
            ["follow|255|", "describe|0|SUSPENDED", "describe|0|ACTIVE"],
            0,
            "describe delete create describe scp setup start follow",
        ),
        # wrong flags
        (["follow|2|", "describe|0|ACTIVE", "running|1|"], 2, "describe running"),
    ],
)
def test_vm_starts_a_run_again(machines, answers, status, more):
    machines.reset("describe|0|ACTIVE", *answers)
    done = machines.launch(*VM)
    assert done.returncode == status, done.stderr
    more = more.split() if isinstance(more, str) else []
    assert verbs(machines) == [*UP, *more, "log", "delete"]


def test_vm_gives_up(machines):
    broken = ["follow|1|", "describe|0|ACTIVE", "running|1|"]
    machines.reset("describe|0|ACTIVE", *broken * 3)
    done = machines.launch(*VM, "--max_restarts=2", "--keep")
    assert done.returncode == 1
    assert verbs(machines).count("start") == 3 and verbs(machines)[-1] == "log"


def test_vm_leaves_the_machines_where_it_cannot_ask(machines):
    machines.reset("describe|0|ACTIVE", "follow|255|", "describe|1|")
    assert machines.launch(*VM).returncode == 1
    assert verbs(machines) == [*UP, "describe"]


def test_vm_does_not_wait_for_what_never_comes(machines):
    machines.reset("describe|0|FAILED")
    done = machines.launch(*VM)
    assert done.returncode == 1 and verbs(machines) == ["create", "describe"]
    assert "first is FAILED" in done.stderr


def test_a_worker_keeps_its_command(tmp_path):
    def worker(*args):
        return subprocess.run(
            [str(ROOT / "launch/tpu/worker.sh"), *args],
            env=os.environ | {"STATE": str(tmp_path / "state")},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    assert worker("running").returncode == 1
    worker("start", "bash", "-c", 'echo "it\'s $1"; sleep 1; exit 3', "_", "a b")
    assert worker("running").returncode == 0
    assert "runs already" in worker("start", "false").stderr
    done = worker("follow")
    assert (done.returncode, done.stdout) == (3, "it's a b\n")
    assert worker("running").returncode == 1
    assert worker("follow").returncode == 3  # and again after the end

    worker("start", "sleep", "30")
    assert worker("stop").returncode == 0
    assert worker("running").returncode == 1
    assert worker("follow").returncode == 1
    assert worker("dance").returncode == 2


# ------------------------------------------------------------------------------------------- GKE
# JobSet v1alpha2, of kubernetes-sigs/jobset api/jobset/v1alpha2/jobset_types.go, without what is
# deprecated. The jobs' templates are checked by Kubernetes' own schema.
ACTIONS = ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
WORDS = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}


def closed(required=(), **properties):
    """An object that has these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


JOBSET = closed(
    required=("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=closed(
        required=("name",),
        name=NAME,
        namespace=NAME,
        labels={"type": "object", "additionalProperties": {"type": "string"}},
        annotations={"type": "object", "additionalProperties": {"type": "string"}},
    ),
    spec=closed(
        required=("replicatedJobs",),
        network=closed(
            enableDNSHostnames={"type": "boolean"},
            subdomain=NAME,
            publishNotReadyAddresses={"type": "boolean"},
        ),
        successPolicy=closed(
            required=("operator",), operator={"enum": ["All", "Any"]}, targetReplicatedJobs=WORDS
        ),
        failurePolicy=closed(
            maxRestarts={"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
            restartStrategy={"enum": ["Recreate", "BlockingRecreate", "InPlaceRestart"]},
            rules={
                "type": "array",
                "items": closed(
                    required=("name", "action"),
                    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                    action={"enum": [*ACTIONS, "RestartJob", "RestartJobAndIgnoreMaxRestarts"]},
                    onJobFailureReasons={
                        "type": "array",
                        "items": {
                            "enum": [
                                "BackoffLimitExceeded",
                                "DeadlineExceeded",
                                "FailedIndexes",
                                "MaxFailedIndexesExceeded",
                                "PodFailurePolicy",
                            ]
                        },
                    },
                    onJobFailureMessagePatterns=WORDS,
                    targetReplicatedJobs=WORDS,
                ),
            },
        ),
        suspend={"type": "boolean"},
        coordinator=closed(
            required=("replicatedJob",),
            replicatedJob=NAME,
            jobIndex={"type": "integer"},
            podIndex={"type": "integer"},
        ),
        managedBy={"type": "string", "maxLength": 63},
        ttlSecondsAfterFinished={"type": "integer", "minimum": 0},
        replicatedJobs={
            "type": "array",
            "minItems": 1,
            "items": closed(
                required=("name", "template"),
                name=NAME,
                groupName=NAME,
                replicas={"type": "integer", "minimum": 0},
                template=closed(
                    required=("spec",), metadata={"type": "object"}, spec={"type": "object"}
                ),
                dependsOn={"type": "array", "maxItems": 5},
            ),
        },
    ),
)


def jobset_of(machines, *args):
    yaml = pytest.importorskip("yaml", reason="it is in the extra dev")
    machines.reset()
    done = machines.launch(*GKE, *args)
    assert done.returncode == 0, done.stderr
    ((_, text),) = machines.calls
    return yaml.safe_load(text)


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("--num_slices=4", "--spot", "--service_account=trainer", "--max_restarts=0"),
        ("--topology=tpu7x:1x1x1",),
        ("--topology=v5e:2x4", "--name=true"),
    ],
)
def test_the_jobset_is_one(machines, args):
    jsonschema = pytest.importorskip("jsonschema", reason="it is in the extra dev")
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="in the extra dev")
    jobset = jobset_of(machines, *args)
    jsonschema.Draft202012Validator(JOBSET).validate(jobset)
    for job in jobset["spec"]["replicatedJobs"]:
        kubernetes_validate.validate(
            {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}}
            | job["template"],
            "1.34",
            strict=True,
        )
        # the longest name of a pod, with the end that Kubernetes makes up
        name, pods = jobset["metadata"]["name"], job["template"]["spec"]["completions"]
        assert len(f"{name}-{job['name']}-{job['replicas'] - 1}-{pods - 1}-abcde") <= 63


def test_schemas_refuse_what_is_wrong(machines):
    """So that the test above is one."""
    jsonschema = pytest.importorskip("jsonschema", reason="it is in the extra dev")
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="in the extra dev")
    jobset = jobset_of(machines)
    template = jobset["spec"]["replicatedJobs"][0]["template"]
    template["spec"]["template"]["spec"]["nodeSelektor"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="nodeSelektor"):
        kubernetes_validate.validate(
            {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}} | template,
            "1.34",
            strict=True,
        )
    jobset["spec"]["failurePolicy"]["maxRestart"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
        jsonschema.Draft202012Validator(JOBSET).validate(jobset)


def test_the_jobset_asks_for_whole_slices(machines):
    jobset = jobset_of(machines, "--topology=v5p:4x4x4", "--num_slices=2", "--max_restarts=7")
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    pod = job["template"]["spec"]
    assert slices["replicas"] == 2
    assert job["parallelism"] == job["completions"] == 16
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert jobset["spec"]["network"] == {"enableDNSHostnames": True, "subdomain": "first"}
    assert jobset["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
    }
    assert pod["containers"][0]["resources"] == {"limits": {"google.com/tpu": 4}}
    assert pod["tolerations"] == [{"key": "google.com/tpu", "operator": "Exists"}]


def test_spot_pods(machines):
    (slices,) = jobset_of(machines, "--spot")["spec"]["replicatedJobs"]
    pod = slices["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert {"key": "cloud.google.com/gke-spot", "operator": "Exists"} in pod["tolerations"]


def test_gke_actions(machines):
    where = ("--context=a", "--namespace=b")
    for action, words in (
        ("log", "logs --follow --tail=-1 --selector=jobset.sigs.k8s.io/jobset-name=first,"),
        ("status", "get jobset first\n"),
        ("delete", "delete jobset first\n"),
    ):
        text = dry(machines, "tpu/gke", action, "--name=first", *where)
        assert text.startswith(f"kubectl --context=a --namespace=b {words}")


# ------------------------------------------------------------------------------------------- XPK
def test_xpk_names(machines):
    text = dry(machines, *XPK, "--num_slices=2", "--project=p", "--zone=us-west4-a", "--spot")
    assert text.startswith(
        "xpk workload create --workload=first --cluster=training --project=p --zone=us-west4-a "
        f"--tpu-type=v5litepod-4x4 --num-slices=2 --docker-image={IMAGE[1]} --spot "
        "--max-restarts=20 --restart-on-exit-codes=1 '--command=env "
    )
    text = dry(machines, "tpu/xpk", "delete", "--name=first", "--cluster=training")
    assert text == "xpk workload delete --workload=first --cluster=training\n"


# ----------------------------------------------------------------------------------------- Slurm
def batch_script(machines, *args):
    machines.reset()
    done = machines.launch(*SLURM, *args)
    assert done.returncode == 0, done.stderr
    call, text = machines.calls[-1]
    assert call[0] == "sbatch"
    machines.reset()
    return text


def test_batch_script(machines):
    text = batch_script(machines, "--cpus_per_task=12", "--sbatch_flag=--partition=gpu")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    # Slurm reads directives up to the first command
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    assert [line.removeprefix("#SBATCH ") for line in lines[1:end]] == [
        "--job-name=first",
        "--nodes=2",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--cpus-per-task=12",
        "--time=1-00:00:00",
        "--output=runs/slurm/%x-%j.log",
        "--open-mode=append",
        "--requeue",
        "--signal=B:USR1@120",
    ]
    assert not any("#SBATCH" in line for line in lines[end:])


def test_the_container_of_a_batch_job(machines):
    text = batch_script(machines, "--image=unidiff_jax.sqsh", "--workdir=runs/a b")
    (line,) = [line for line in text.splitlines() if line.startswith("srun")]
    workdir = f"{ROOT}/runs/a b"
    assert as_shell(line.removesuffix(" &"))[:8] == [
        "srun",
        "--kill-on-bad-exit=1",
        "--container-image=unidiff_jax.sqsh",
        "--container-workdir=/unidiff_jax",
        "--no-container-mount-home",
        f"--container-mounts={workdir}:{workdir}",
        "env",
        f"JAX_COMPILATION_CACHE_DIR={workdir}/compilation_cache",
    ]


@pytest.mark.parametrize(
    ("status", "restarts", "state", "queued_again"),
    [
        (0, 0, "RUNNING", False),
        (1, 0, "RUNNING", True),
        (134, 19, "RUNNING", True),
        (134, 20, "RUNNING", False),
        (2, 0, "RUNNING", False),
        (143, 0, "COMPLETING", False),  # cancelled
    ],
)
def test_a_batch_job_that_broke_off_queues_again(machines, status, restarts, state, queued_again):
    text = batch_script(machines)
    machines.reset(f"srun|{status}|", f"squeue|0|{state}")
    machines.environment |= {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    assert machines.run(["bash"], input=text, cwd=ROOT).returncode == status
    requeued = (["scontrol", "requeue", "7"], "") in machines.calls
    assert requeued == queued_again


@pytest.mark.parametrize("ends_by_itself", [True, False])
def test_a_warning_reaches_training_and_the_queue(machines, tmp_path, ends_by_itself):
    text = batch_script(machines, "--grace=10" if not ends_by_itself else "--grace=120")
    text = text.replace("patience=7\n", "patience=0.2\n")
    trap = "trap 'touch ended; exit 143' TERM" if ends_by_itself else "trap 'touch warned' TERM"
    (tmp_path / "bin/srun").write_text(
        f"#!/bin/bash\n{trap}\ntouch started\nwhile true; do sleep 0.05; done\n"
    )
    machines.reset("squeue|0|RUNNING")
    job = subprocess.Popen(
        ["bash", "-c", text], cwd=tmp_path, env=machines.environment | {"SLURM_JOB_ID": "7"}
    )
    while not (tmp_path / "started").exists():
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=20) == 128 + signal.SIGUSR1
    assert (tmp_path / ("ended" if ends_by_itself else "warned")).exists()
    assert (["scontrol", "requeue", "7"], "") in machines.calls


# ------------------------------------------------------------------------------------- container
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("build", "--extra=tpu"), "docker build --build-arg=EXTRA=tpu --file=launch/container/"),
        (("push", *IMAGE), f"docker push {IMAGE[1]}\n"),
        (("import",), "enroot import --output=unidiff_jax-cuda.sqsh dockerd://unidiff_jax:cuda\n"),
        (("import", "--engine=podman", "--file=a.sqsh"), "enroot import --output=a.sqsh podman://"),
        (CONTAINER[1:], "docker run --rm --network=host --ipc=host --gpus=all --volume="),
        ((*CONTAINER[1:], "--extra=tpu"), "docker run --rm --network=host --ipc=host --privileged"),
        ((*CONTAINER[1:], "--engine=podman"), "podman run --rm --network=host --ipc=host --dev"),
    ],
)
def test_container_actions(machines, args, words):
    assert dry(machines, "container", *args).startswith(words)


def test_the_image_has_the_code_and_nothing_else():
    text = (ROOT / "launch/container/Dockerfile").read_text()
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for word in line.split()}
    assert copied == allowed
    for path in copied:
        assert (ROOT / path).exists()
    setup = (ROOT / "setup.py").read_text()
    packages = ast.literal_eval(re.search(r"for name in (\(.*\))", setup)[1])
    assert set(packages) <= copied
    assert re.findall(r"^ARG EXTRA=(\w+)$", text, re.M) == ["cuda"]
