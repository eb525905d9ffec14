"""How a run is started on many processes: the plan, Accelerate's configuration, the command.

Accelerate starts the processes, through torchrun; here is only what it is told. Nothing is started
in this module, so a plan for machines that are elsewhere can be looked at anywhere.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sftkit.errors import SettingsError
from sftkit.settings import Recipe

Strategy = Literal["ddp", "fsdp", "deepspeed-zero2", "deepspeed-zero3"]
STRATEGIES: Mapping[Strategy, str] = {
    "ddp": "every process holds the whole model and takes its share of each step's examples",
    "fsdp": "every process holds a part of weights, gradients and optimizer",
    "deepspeed-zero2": "every process holds the whole model, and a part of gradients and optimizer",
    "deepspeed-zero3": "every process holds a part of weights, gradients and optimizer",
}
UNTESTED = (
    "untested here: no machine with several GPUs was there. Such runs are also outside of the "
    "promise that a resumed run is bit-identical"
)


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """Which processes a run is started on.

    Attributes:
        processes: Processes on all machines together, as Accelerate counts them.
        machines: Machines; each takes as many processes as the others.
        machine_rank: Number of this machine, from 0. The first measures, writes and saves.
        main_address: HOST:PORT of the first machine, as the others reach it.
        strategy: What is divided among the processes.
        device: cpu or cuda; on cuda every process has a GPU of its own.
        threads: Processor threads of each process.
    """

    processes: int
    machines: int = 1
    machine_rank: int = 0
    main_address: str | None = None
    strategy: Strategy = "ddp"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1

    @property
    def per_machine(self) -> int:
        """Processes on each machine."""
        return self.processes // self.machines


def plan_launch(
    recipe: Recipe,
    *,
    processes: int,
    machines: int = 1,
    machine_rank: int = 0,
    main_address: str | None = None,
    strategy: Strategy = "ddp",
) -> LaunchPlan:
    """Say on which processes a recipe would be started.

    Args:
        recipe: What would be trained.
        processes: Processes on all machines together.
        machines: How many machines.
        machine_rank: Number of this machine, from 0.
        main_address: HOST:PORT of the first machine; needed with several.
        strategy: What is divided among the processes.

    Raises:
        SettingsError: The combination can work on no machine; every reason is named.
    """
    faults = [
        *_fault_of_numbers(processes, machines, machine_rank),
        *_fault_of_address(machines, machine_rank, main_address),
        *_fault_of_recipe(recipe, processes, strategy),
    ]
    if faults:
        lines = "\n".join(f"  - {fault}" for fault in faults)
        raise SettingsError(f"This launch cannot work:\n{lines}")
    device = _device(recipe, strategy)
    given = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    per_process = max(1, (cores or 1) // (processes // machines))
    return LaunchPlan(
        processes=processes,
        machines=machines,
        machine_rank=machine_rank,
        main_address=main_address,
        strategy=strategy,
        device=device,
        threads=int(given) if given.isdigit() and int(given) else per_process,
    )


def _fault_of_numbers(processes: int, machines: int, machine_rank: int) -> list[str]:
    if processes < 1 or machines < 1:
        return [f"processes={processes} and machines={machines} must both be 1 or more."]
    faults = []
    if processes % machines:
        faults.append(
            f"{processes} processes cannot be divided evenly among {machines} machines. "
            "--processes counts those of all machines together."
        )
    if not 0 <= machine_rank < machines:
        faults.append(
            f"machine_rank={machine_rank} is none of the {machines} machines: the first is 0, the "
            f"last {machines - 1}."
        )
    return faults


def _fault_of_address(machines: int, machine_rank: int, address: str | None) -> list[str]:
    if address is None:
        words = (
            f"{machines} machines must know where to meet: give main_address=HOST:PORT of the "
            "first, the same on all (--main-address)."
        )
        return [words] if machines > 1 else []
    if machines == 1:
        return ["main_address is for several machines; one finds a free port by itself."]
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        return [f"main_address={address!r} must be HOST:PORT, such as 10.0.0.1:29500."]
    return []


def _fault_of_recipe(recipe: Recipe, processes: int, strategy: str) -> list[str]:
    model, faults = recipe.model, []
    if strategy not in get_args(Strategy):
        return [f"There is no strategy {strategy!r}. Use {', '.join(STRATEGIES)}."]
    if model.device_map is not None and processes > 1:
        faults.append(
            f"model.device_map={model.device_map!r} spreads one copy of the model over devices, "
            "and every process holds a copy of its own. Leave it away, or use one process."
        )
    if model.device == "mps" and processes > 1:
        faults.append("Several processes cannot share an Apple GPU. Use --set model.device=cpu.")
    if strategy == "ddp":
        return faults
    if model.device in ("cpu", "mps"):
        faults.append(f"{strategy} needs CUDA GPUs, and model.device is {model.device}. Use ddp.")
    if strategy in ("fsdp", "deepspeed-zero3") and model.quantization != "none":
        faults.append(
            f"{strategy} cannot split a base held in {model.quantization}. Use ddp, which gives "
            "every process its own quantized copy, or quantization: none."
        )
    return faults


def _device(recipe: Recipe, strategy: str) -> Literal["cpu", "cuda"]:
    if recipe.model.device == "cuda" or strategy != "ddp":
        return "cuda"
    if recipe.model.device != "auto":
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def missing_here(plan: LaunchPlan) -> list[str]:
    """Say what this machine lacks to take its part in a plan; empty if nothing."""
    lacks = []
    if plan.device == "cuda":
        import torch

        there = torch.cuda.device_count()  # asks the driver; CUDA itself is not started by it
        if plan.per_machine > there:
            fewer = f"--processes {there * plan.machines}, or " if there else ""
            lacks.append(
                f"{plan.per_machine} processes need a GPU each, and this machine has {there}. Use "
                f"{fewer}--set model.device=cpu."
            )
    is_deepspeed = plan.strategy.startswith("deepspeed")
    if is_deepspeed and importlib.util.find_spec("deepspeed") is None:
        lacks.append("DeepSpeed is not installed here: python -m pip install deepspeed")
    return lacks


def accelerate_config(plan: LaunchPlan, recipe: Recipe) -> dict[str, Any]:
    """Give the configuration that `accelerate launch --config_file` reads.

    Args:
        plan: Which processes.
        recipe: Its cap on gradients and its type, for DeepSpeed.
    """
    host, _, port = (plan.main_address or ":0").rpartition(":")
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        # Also on CPUs: under MULTI_CPU Accelerate starts one process, whatever number it is given.
        "distributed_type": "MULTI_GPU",
        "use_cpu": plan.device == "cpu",
        "num_machines": plan.machines,
        "num_processes": plan.processes,
        "machine_rank": plan.machine_rank,
        "main_process_port": int(port),  # 0 takes a free one
        "same_network": True,  # every machine reaches the first by this address
        "rdzv_backend": "static",
        "mixed_precision": "no",  # the loop itself computes in 16 bits where that is faster
        "gpu_ids": "all",
    }
    if host:
        config["main_process_ip"] = host.strip("[]")
    if plan.strategy == "fsdp":
        config["distributed_type"] = "FSDP"
        config["fsdp_config"] = {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_reshard_after_forward": True,
            "fsdp_state_dict_type": "FULL_STATE_DICT",
            "fsdp_offload_params": False,
            "fsdp_cpu_ram_efficient_loading": False,
            "fsdp_activation_checkpointing": False,  # train.activation_checkpointing does it
        }
    elif plan.strategy != "ddp":
        stage = int(plan.strategy[-1])
        config["distributed_type"] = "DEEPSPEED"
        config["deepspeed_config"] = {
            "zero_stage": stage,
            "gradient_accumulation_steps": 1,  # train.micro_batches does it
            "gradient_clipping": recipe.train.max_grad_norm,
            "offload_optimizer_device": "none",
            "offload_param_device": "none",
            "zero3_init_flag": False,
            "zero3_save_16bit_model": stage == 3,
            "deepspeed_multinode_launcher": "standard",  # torchrun on every machine, no ssh
        }
    return config


def config_text(plan: LaunchPlan, recipe: Recipe) -> str:
    """Write Accelerate's configuration as YAML."""
    import yaml

    return str(yaml.safe_dump(accelerate_config(plan, recipe), sort_keys=False))


def launch_command(
    plan: LaunchPlan,
    *,
    config: str | Path,
    recipe: str | Path,
    out: str | Path,
    rest: Sequence[str],
) -> list[str]:
    """Give the command that starts this machine's processes.

    Args:
        plan: Which processes.
        config: The file with Accelerate's configuration.
        recipe: The file with the recipe.
        out: The run's folder.
        rest: Further options of the process, such as --resume.
    """
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(config)),
        *("--num_cpu_threads_per_process", str(plan.threads)),
        *("-m", "sftkit.worker", str(recipe), "--out", str(out)),
        *rest,
    ]


def launch_environment(plan: LaunchPlan, *, stop_wait_s: int) -> dict[str, str]:
    """Give the environment of the processes.

    Args:
        plan: Which processes.
        stop_wait_s: Seconds that processes have to save and end when asked to stop.
    """
    package = str(Path(__file__).resolve().parent.parent)
    path = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    added = {
        "PYTHONPATH": os.pathsep.join(path),  # the same sftkit, wherever this one was found
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(stop_wait_s),
        "ACCELERATE_USE_CPU": str(plan.device == "cpu").lower(),
    }
    if interface := network_interface(plan.main_address):
        added |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    # What a process that was launched itself has set is not handed on; what a person set, stays.
    left_out = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    )
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    chosen = {name for name in added if name.endswith("IFNAME") and name in kept}
    return {**kept, **{name: value for name, value in added.items() if name not in chosen}}


def network_interface(main_address: str | None) -> str | None:
    """Name the network interface that reaches the first machine; None if it cannot be told.

    Left alone, gloo takes the one that the machine's own name leads to: often another network.
    """
    import psutil

    host, _, port = (main_address or "127.0.0.1:9").rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)
        family, _, _, _, where = found[0]
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.connect(where)  # sends nothing; only asks for the route
            own = asking.getsockname()[0]
    except OSError:
        return None
    names = {
        address.address: name
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
    }
    return names.get(own)


def launch_text(plan: LaunchPlan) -> str:
    """Say in words what would be started."""
    count = f"{plan.per_machine} processes" if plan.per_machine > 1 else "1 process"
    threads = f"{plan.threads} CPU threads" if plan.threads > 1 else "1 CPU thread"
    each = "a GPU" if plan.device == "cuda" else threads
    lines = [
        f"{count} on this machine with {each} each, through Accelerate. "
        f"{plan.strategy}: {STRATEGIES[plan.strategy]}."
    ]
    if plan.machines > 1:
        lines.append(
            f"This is machine {plan.machine_rank} of {plan.machines} (from 0), {plan.processes} "
            f"processes in all; they meet at {plan.main_address}, the first machine."
        )
    if plan.strategy != "ddp":
        lines.append(f"{plan.strategy} is {UNTESTED}.")
    return "\n".join(lines)


def dry_launch(plan: LaunchPlan, recipe: Recipe) -> dict[str, Any]:
    """Give what a launch would do as plain values: words, configuration, command."""
    out = Path("runs") / recipe.name
    return {
        "words": launch_text(plan),
        "missing_here": missing_here(plan),
        "accelerate_config": accelerate_config(plan, recipe),
        "command": launch_command(
            plan, config="accelerate.yaml", recipe="recipe.yaml", out=out, rest=()
        ),
    }


def dry_launch_text(plan: LaunchPlan, recipe: Recipe) -> str:
    """Write what a launch would do, for reading."""
    found = dry_launch(plan, recipe)
    lines = [f"Would start {found['words']}"]
    lines += [f"Not on this machine: {words}" for words in found["missing_here"]]
    lines += ["", "accelerate.yaml:", *_indented(config_text(plan, recipe))]
    whose = ", on each machine with its own machine_rank" if plan.machines > 1 else ""
    lines += ["", f"Command{whose}:", f"  {shlex.join(found['command'])}"]
    return "\n".join(lines)


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]
