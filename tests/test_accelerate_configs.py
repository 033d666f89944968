"""Launch configurations of examples/accelerate: accelerate reads them, and they mean what they say."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, prepare_multi_gpu_env

from hf_clsi import ClsiConfig, ClsiForCausalLM
from hf_clsi.cli.main import build_parser
from hf_clsi.configuration_clsi import SIZES

FOLDER = Path(__file__).parents[1] / "examples" / "accelerate"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
FSDP = [path for path in CONFIGS if path.name.startswith("fsdp2")]
DOCUMENT = FOLDER.parents[1] / "docs" / "scale.md"


def launched(path, *options):
    """What `accelerate launch` makes of a configuration: its arguments, and what it tells the processes."""
    arguments = launch_command_parser().parse_args(["--config_file", str(path), *options, "train.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    return arguments, prepare_multi_gpu_env(arguments)


def test_there_is_one_for_ddp_and_two_for_fsdp2():
    assert [path.name for path in CONFIGS] == ["ddp.yaml", "fsdp2.yaml", "fsdp2_nodes.yaml"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_accelerate_reads_them_and_knows_every_key(path):
    config = load_config_from_file(str(path))  # an unknown key is a ValueError
    assert isinstance(config, ClusterConfig)
    assert config.mixed_precision == "bf16"
    kind = DistributedType.FSDP if path in FSDP else DistributedType.MULTI_GPU
    assert config.distributed_type == kind
    known = vars(launch_command_parser().parse_args(["train.py"]))
    assert set(config.fsdp_config) <= set(known)  # these are not checked by accelerate


@pytest.mark.parametrize("path", FSDP, ids=lambda path: path.name)
def test_fsdp2_is_what_the_processes_are_told(path):
    _, environment = launched(path)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_RESHARD_AFTER_FORWARD"] == "true"
    assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    assert environment["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
    assert environment["FSDP_OFFLOAD_PARAMS"] == "false"


@pytest.mark.parametrize("path", FSDP, ids=lambda path: path.name)
def test_the_plugin_that_comes_of_it(path, monkeypatch):
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import StateDictType
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    _, environment = launched(path)
    for name in [name for name in os.environ if name.startswith("FSDP_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    assert plugin.cpu_ram_efficient_loading is True
    assert plugin.activation_checkpointing is False


@pytest.mark.parametrize(("size", "block"), [("360m", "Qwen2DecoderLayer"), ("1b", "LlamaDecoderLayer")])
def test_the_model_names_its_blocks(size, block):
    """What TRANSFORMER_BASED_WRAP divides by, since the configurations name no class."""
    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    decoder = {**SIZES[size]["text_config"], **small, "num_hidden_layers": 2}
    model = ClsiForCausalLM(ClsiConfig(num_units=7, text_config=decoder))
    assert set(model._no_split_modules) == {block}
    blocks = [name for name, module in model.named_modules() if type(module).__name__ == block]
    assert blocks == ["model.language_model.layers.0", "model.language_model.layers.1"]


def test_several_nodes_are_told_where_to_meet():
    options = "--num_machines", "2", "--num_processes", "8", "--machine_rank", "1"
    arguments, environment = launched(FSDP[1], *options, "--main_process_ip", "node-1")
    assert (arguments.num_machines, arguments.num_processes, arguments.machine_rank) == (2, 8, 1)
    assert (arguments.main_process_ip, arguments.main_process_port) == ("node-1", 29500)
    assert environment["FSDP_VERSION"] == "2"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_comments_do_not_change_the_values(path):
    """A `#` in a value would end it."""
    assert all(value != "" for value in yaml.safe_load(path.read_text(encoding="utf-8")).values())


def test_the_slurm_script_is_bash():
    done = subprocess.run(["bash", "-n", str(FOLDER / "train.sbatch")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_slurm_script_starts_a_process_a_gpu_and_hands_on_its_arguments(tmp_path):
    """With stand-ins for Slurm's commands and torchrun, on this machine."""
    for name, body in {
        "scontrol": 'if [ "$1" = show ]; then echo node-1; echo node-2; else echo "scontrol $*" >> LOG; fi',
        "srun": 'shift; exec "$@"',
        "torchrun": 'echo "torchrun $*" >> LOG',
    }.items():
        script = tmp_path / name
        script.write_text("#!/bin/bash\n" + body.replace("LOG", str(tmp_path / "log")) + "\n")
        script.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "41",
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
    }
    subprocess.run(
        ["bash", str(FOLDER / "train.sbatch"), "interleave", "--data", "a b"],
        env=environment,
        check=True,
        timeout=20,
    )
    assert (tmp_path / "log").read_text().splitlines() == [
        "torchrun --nnodes=2 --nproc_per_node=4 --rdzv_backend=c10d --rdzv_endpoint=node-1:20041 "
        "--rdzv_id=41 -m hf_clsi.cli.main train interleave --data a b"
    ]


def test_a_warned_job_ends_its_steps_and_goes_back_into_the_queue(tmp_path):
    for name, body in {
        "scontrol": f'if [ "$1" = show ]; then echo node-1; else echo "$*" >> {tmp_path}/log; fi',
        "srun": f'trap "echo ended >> {tmp_path}/log; exit 143" TERM; touch {tmp_path}/runs; '
        "while true; do sleep 0.05; done",
    }.items():
        script = tmp_path / name
        script.write_text(f"#!/bin/bash\n{body}\n")
        script.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node-1",
        "SLURM_NNODES": "1",
    }
    job = subprocess.Popen(["bash", str(FOLDER / "train.sbatch"), "interleave"], env=environment)
    for _ in range(200):
        if (tmp_path / "runs").exists():
            break
        try:
            job.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    job.terminate()
    assert job.wait(10) == 0
    assert (tmp_path / "log").read_text().splitlines() == ["requeue 7", "ended"]


def commands_of(path):
    """What follows `train` in every command that a file shows, in a comment or a block."""
    text = re.sub(r"\\\n#? *", " ", path.read_text(encoding="utf-8"))
    found = re.findall(r"(?:hf-clsi train|cli\.main train|train\.sbatch) ([a-z].*)", text)
    return [command.split() for command in found if not command.endswith("...")]


@pytest.mark.parametrize(("path", "number"), [(FOLDER / "train.sbatch", 1), (DOCUMENT, 5)])
def test_the_commands_shown_are_understood(path, number):
    commands = commands_of(path)
    assert len(commands) == number
    for command in commands:
        arguments = build_parser().parse_args(["train", *command])
        assert (arguments.recipe, arguments.size) == ("interleave-ft", "1b")
        assert arguments.dry_run or (arguments.data and arguments.output_dir)
