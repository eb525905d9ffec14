"""What the processes of one run tell each other: in bounded time, and never by pickle.

Outside a launch there is one process, and everything here is a plain pass-through. Gradients are
summed here, after the last micro-batch, and not by DistributedDataParallel while they are made:
a process whose memory ran out could otherwise leave the others waiting in the middle of a step.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from sftkit.errors import ProcessError, TrainError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

STEP_WAIT_S = 60.0
"""How long a process waits for the others within a training step; SFTKIT_STEP_WAIT_S changes it."""
STAGE_WAIT_S = 3600.0
"""How long it waits while the first process alone is at work: measuring, saving."""
BUCKET_BYTES = 1 << 25


def process_index() -> int:
    """Number of this process among all of the run, from 0; 0 where nothing was launched."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """Processes of the run, on all machines; 1 where nothing was launched."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_index() -> int:
    """Number of this process among those of its machine, from 0; also the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_launched() -> bool:
    """Whether torchrun started this process, alone or with others."""
    return "RANK" in os.environ


def is_main() -> bool:
    """Whether this is the process that measures, writes and shows; the others only train."""
    return process_index() == 0


def step_wait_s() -> float:
    """Seconds a process waits for the others within a training step.

    Raises:
        TrainError: SFTKIT_STEP_WAIT_S is not a number above zero.
    """
    given = os.environ.get("SFTKIT_STEP_WAIT_S", str(STEP_WAIT_S))
    try:
        wait = float(given)
    except ValueError:
        wait = 0.0
    if not wait > 0:
        raise TrainError(f"SFTKIT_STEP_WAIT_S must be seconds above 0, got {given!r}.")
    return wait


class Processes:
    """The processes that train together: this one, and whoever else was launched with it.

    Args:
        base: The transformers model, on the device it trains on.
        advice: What to do when another process is lost, for the message.

    Attributes:
        accelerator: Accelerate's own object, for its optimizer, its scaler and its clipping.
        index: Number of this process, from 0.
        count: Processes in all.
        is_sharded: Whether FSDP or DeepSpeed splits the model; they sum gradients themselves.
    """

    def __init__(self, base: Any, *, advice: str = "") -> None:
        import torch
        from accelerate import Accelerator, InitProcessGroupKwargs
        from accelerate.utils import DistributedType

        # 16-bit compute is autocast in `forward`; float16 also needs its gradients scaled.
        half = base.dtype == torch.float16
        stage_wait = datetime.timedelta(seconds=STAGE_WAIT_S)
        self.accelerator: Accelerator = Accelerator(
            cpu=base.device.type == "cpu",
            mixed_precision="fp16" if half else "no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=stage_wait)],
        )
        self.index = self.accelerator.process_index
        self.count = self.accelerator.num_processes
        self.is_sharded = self.accelerator.distributed_type in (
            DistributedType.FSDP,
            DistributedType.DEEPSPEED,
        )
        self._advice = advice
        self._wait_s = step_wait_s()
        if self.count > 1:
            wait = datetime.timedelta(seconds=self._wait_s)
            with self._in_words():
                # Words go over the CPUs' own network, so that a lost process is told, not hung on.
                self._words = torch.distributed.new_group(backend="gloo", timeout=wait)
                self._stages = torch.distributed.new_group(backend="gloo", timeout=stage_wait)
                on_cuda = base.device.type == "cuda"
                self._tensors = (
                    torch.distributed.new_group(backend="nccl", timeout=wait)
                    if on_cuda
                    else self._words
                )

    @property
    def scale(self) -> int:
        """Factor on losses: FSDP and DeepSpeed average gradients, and a step's loss is a sum."""
        return self.count if self.is_sharded else 1

    @property
    def is_main(self) -> bool:
        """Whether this process measures, writes and shows."""
        return self.index == 0

    def prepare(self, model: Any, optimizer: Any) -> tuple[Any, Any]:
        """Hand the optimizer to Accelerate, and the model too where it is to be split.

        Data parallel processes keep the model as it is, without a wrapper, and start from the
        first one's trained weights.
        """
        if self.is_sharded:
            model, optimizer = self.accelerator.prepare(model, optimizer)
        else:
            optimizer = self.accelerator.prepare(optimizer)
            self.start_equal(parameter for parameter in model.parameters())
        return model, optimizer

    def start_equal(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Give every process the first one's trained weights."""
        import torch

        if self.count == 1 or self.is_sharded:
            return
        with self._in_words(), torch.no_grad():
            for parameter in parameters:
                if parameter.requires_grad:
                    torch.distributed.broadcast(parameter.data, src=0, group=self._tensors)

    def sums_itself(self, model: Any, *, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """Keep FSDP and DeepSpeed from summing before the last micro-batch; else do nothing."""
        if self.is_sharded and not is_last:
            return self.accelerator.no_sync(model)
        return contextlib.nullcontext()

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes, bit-equal in all of them."""
        if self.count == 1 or self.is_sharded:
            return
        import torch

        with self._in_words():
            for bucket in _buckets([p for p in parameters if p.requires_grad]):
                for parameter in bucket:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                flat = torch.cat([p.grad.reshape(-1) for p in bucket if p.grad is not None])
                torch.distributed.all_reduce(flat, group=self._tensors)
                for parameter, values in zip(
                    bucket, flat.split([p.numel() for p in bucket]), strict=True
                ):
                    parameter.grad = values.view_as(parameter).clone()

    def sum(self, *values: float) -> list[float]:
        """Add up numbers over all processes."""
        if self.count == 1:
            return list(values)
        import torch

        told = torch.tensor(values, dtype=torch.float64)
        with self._in_words():
            torch.distributed.all_reduce(told, group=self._words)
        return [float(value) for value in told]

    def any(self, is_so: bool) -> bool:
        """Say whether something holds in any process; all get the same answer."""
        return self.sum(float(is_so))[0] > 0

    def from_first(self, make: Callable[[], bytes]) -> bytes:
        """Let the first process make something, and give it to all. The others wait for long."""
        if self.count == 1:
            return make()
        import torch

        data = make() if self.is_main else b""
        size = torch.tensor(len(data))
        with self._in_words():
            torch.distributed.broadcast(size, src=0, group=self._stages)
            held = (
                torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)
                if self.is_main
                else torch.empty(max(1, int(size)), dtype=torch.uint8)
            )
            torch.distributed.broadcast(held, src=0, group=self._stages)
        return held.numpy().tobytes()[: int(size)]

    def gather(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Collect a tensor on the CPU, of the same shape in all processes, from each of them."""
        if self.count == 1:
            return [values]
        import torch

        found = [torch.empty_like(values) for _ in range(self.count)]
        with self._in_words():
            torch.distributed.all_gather(found, values, group=self._words)
        return found

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        """Say in words that another process was lost."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1:
                raise
            raise ProcessError(
                f"Process {self.index} of {self.count} lost another one: it was stopped, its "
                f"machine cannot be reached, or it did not answer within {self._wait_s:g} s. "
                f"{self._advice}".rstrip()
            ) from error


def _buckets(parameters: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Put parameters of one type together until a bucket is full; in the same order everywhere."""
    bucket: list[torch.nn.Parameter] = []
    held = 0
    for parameter in parameters:
        kind = (parameter.dtype, parameter.device)
        if bucket and (held >= BUCKET_BYTES or kind != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket, held = [], 0
        bucket.append(parameter)
        held += parameter.numel() * parameter.element_size()
    if bucket:
        yield bucket
