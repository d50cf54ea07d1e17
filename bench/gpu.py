"""Training on one GPU: ceilings, what each lever is worth, QLoRA's memory, and small models.

Part 1 measures the GPU itself, a few layers of 7B shapes with one lever at a time taken away, and
the whole 7B model. Part 2 trains 4-bit models with micro-batches of growing size. Part 3 looks at
models so small that launching kernels costs more than running them. Weights are random: only the
shapes matter. The floor is the arithmetic that nobody can leave out, at the measured speed of the
GPU's matrix products.

    python bench/gpu.py
    python bench/gpu.py --device cpu --tiny     # its logic on a machine without a GPU
"""

import argparse
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.comparison.floor import Shape, step_flops  # noqa: E402
from bench.make_model import make_model  # noqa: E402

LEVERS = frozenset({"low rank", "liger", "varlen"})
RANK = 16


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    part: int
    name: str
    size: str
    num_layers: int | None
    batch_size: int
    length: int
    levers: frozenset[str] = LEVERS
    has_checkpointing: bool = False
    is_quantized: bool = False


@dataclass(frozen=True)
class Measured:
    """What a case's steps were like."""

    seconds: float
    tokens_per_second: float
    fraction_of_floor: float
    peak_bytes: int
    num_syncs: int | None
    """Waits of the host for the device in one step; None on the CPU."""
    checkpoint_seconds: float
    loss: float


def cases() -> list[Case]:
    few = Case(1, "8 layers, all levers", "llama-7b", 8, 8, 2048)
    whole = Case(1, "32 layers, LoRA", "llama-7b", None, 8, 2048)
    quantized = replace(whole, part=2, is_quantized=True, has_checkpointing=True)
    return [
        few,
        replace(few, name="8 layers, checkpointing", has_checkpointing=True),
        *(
            replace(few, name=f"8 layers, without {lever}", levers=LEVERS - {lever})
            for lever in sorted(LEVERS)
        ),
        whole,
        *(
            replace(quantized, name=f"QLoRA {rows} x {length}", batch_size=rows, length=length)
            for rows, length in ((1, 512), (1, 2048), (4, 2048), (8, 2048))
        ),
        Case(3, "TinyLlama 8 x 512", "tinyllama", None, 8, 512),
        Case(3, "TinyLlama 4 x 512, checkpointing", "tinyllama", None, 4, 512, LEVERS, True),
        Case(3, "TinyLlama 64 x 512", "tinyllama", None, 64, 512),
    ]


def tiny(case: Case) -> Case:
    return replace(case, size="tiny", num_layers=2, length=24, batch_size=min(case.batch_size, 2))


def main() -> None:
    given = parse_arguments()
    require_device(given.device)
    from worker import trainer

    trainer.preload()
    chosen = [case for case in cases() if case.part in given.parts]
    if given.tiny:
        chosen = [tiny(case) for case in chosen]
    speed = product_speed(given.device, 256 if given.tiny else 8192)
    print(f"matrix products: {speed / 1e12:.2f} TFLOP/s\n{HEADER}")
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in chosen:
            measured = run_case(case, Path(folder), given, speed)
            print(line_of(case, measured), flush=True)
            facts = {**asdict(case), "levers": sorted(case.levers)}
            results.append({**facts, **asdict(measured)})
    write(given, speed, results)


def require_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "bench/gpu.py needs a CUDA device, and torch sees none here; its logic runs without"
            " one as: python bench/gpu.py --device cpu --tiny"
        )


HEADER = (
    f"{'part':>4}  {'case':34}{'s/step':>9}{'tokens/s':>11}{'of floor':>10}{'peak GB':>9}"
    f"{'syncs':>7}{'save s':>8}"
)


def line_of(case: Case, m: Measured) -> str:
    syncs = "-" if m.num_syncs is None else str(m.num_syncs)
    return (
        f"{case.part:4d}  {case.name:34}{m.seconds:9.3f}{m.tokens_per_second:11.0f}"
        f"{m.fraction_of_floor:10.2f}{m.peak_bytes / 1e9:9.2f}{syncs:>7}{m.checkpoint_seconds:8.3f}"
    )


def run_case(
    case: Case, folder: Path, given: argparse.Namespace, flops_per_second: float
) -> Measured:
    """Build a model, train some steps on random tokens, and free it again."""
    import torch

    model_folder = folder / f"{case.size}-{case.num_layers}"
    if not model_folder.is_dir():
        make_model(case.size, model_folder, num_layers=case.num_layers)
    side = Side(case, model_folder, given.device)
    try:
        for _ in range(given.warmup):
            side.step()
        seconds = [side.timed_step() for _ in range(given.steps)]
        middle = statistics.median(seconds)
        num_tokens = case.batch_size * case.length
        floor = step_flops(side.shape(), [case.length] * case.batch_size, num_tokens)
        return Measured(
            seconds=middle,
            tokens_per_second=num_tokens / middle,
            fraction_of_floor=floor / flops_per_second / middle,
            peak_bytes=side.peak_bytes(),
            num_syncs=side.count_syncs(),
            checkpoint_seconds=side.time_save(folder),
            loss=side.last_loss,
        )
    finally:
        del side
        gc.collect()
        if given.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


class Side:
    """A model ready to step, put together as the trainer does."""

    def __init__(self, case: Case, folder: Path, device: str) -> None:
        import torch

        from app.domain.options import LoraSpec, QuantizationSpec
        from worker.training import adapters, loss, model, optim

        self.case, self.device = case, torch.device(device)
        dtype = model.resolve_dtype("auto", device=device)
        quantization = QuantizationSpec(load_in_4bit=case.is_quantized)
        base = model.load_model(folder, dtype=dtype, device=self.device, quantization=quantization)
        lora = LoraSpec(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
        self.adapted = adapters.attach(base, lora, seed=1, base_model="bench")
        _use_levers(self.adapted.base, case.levers)
        if case.has_checkpointing:
            self.adapted.base.activation_checkpointing_enable({"use_reentrant": False})
            self.adapted.base.disable_input_require_grads()
        self.parameters = list(self.adapted.parameters.values())
        self.optimizer = optim.make_optimizer(self.parameters, weight_decay=0.0)
        optim.set_learning_rate(self.optimizer, 1e-4)
        self.loss_sum = loss.make_loss_sum(self.adapted.base)
        self.last_loss = float("nan")

    def step(self) -> None:
        import numpy as np

        from worker.training.batch import lay_end_to_end
        from worker.training.encode import EncodedRow
        from worker.training.step import train_step

        length = self.case.length
        ids = np.random.default_rng(1).integers(0, 32000, length, dtype=np.int32)
        rows = [EncodedRow(1, ids, np.ones(length, bool)) for _ in range(self.case.batch_size)]
        batch = lay_end_to_end(rows, device=self.device)
        with _varlen("varlen" in self.case.levers):
            result = train_step(
                self.loss_sum, self.parameters, self.optimizer, [batch], max_grad_norm=1.0
            )
        self.last_loss = result.loss

    def timed_step(self) -> float:
        began = time.perf_counter()
        self.step()  # ends with the loss on the host, but for the update
        self._wait()
        return time.perf_counter() - began

    def count_syncs(self) -> int | None:
        """Count the profiler's `cudaStreamSynchronize` and its like in one step."""
        if self.device.type != "cuda":
            return None
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
            self.step()
        names = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
        return sum(event.count for event in trace.key_averages() if event.key in names)

    def time_save(self, folder: Path) -> float:
        """Time writing the adapter and the optimizer's state as safetensors."""
        from safetensors.torch import save_file

        from worker.training import state

        self._wait()
        began = time.perf_counter()
        tensors = state.live_tensors(self.adapted.parameters, self.optimizer, self.device)
        save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, folder / "save.tmp")
        return time.perf_counter() - began

    def peak_bytes(self) -> int:
        import resource

        import torch

        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB

    def shape(self) -> Shape:
        config = self.adapted.base.config
        weights = dict(self.adapted.base.named_parameters())
        hidden, heads = config.hidden_size, config.num_attention_heads
        inner, key_value = config.intermediate_size, config.num_key_value_heads
        per_layer = 2 * hidden * hidden * (1 + key_value / heads) + 3 * hidden * inner
        return Shape(
            num_layers=config.num_hidden_layers,
            block_parameters=int(per_layer * config.num_hidden_layers),
            lora_parameters=sum(w.numel() for n, w in weights.items() if "lora_" in n),
            attention_width=hidden,
            hidden_size=hidden,
            vocabulary=config.vocab_size,
        )

    def _wait(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _use_levers(base: Any, levers: frozenset[str]) -> None:
    from worker.training import fast_layers, low_rank

    if levers >= {"low rank", "liger"}:
        fast_layers.speed_up(base, tokens_per_step=1e9)
    elif "low rank" in levers:
        low_rank.speed_up(base)
    elif "liger" in levers and fast_layers.can_use_liger(base.device):
        fast_layers.use_liger(base)


@contextmanager
def _varlen(is_used: bool) -> Iterator[None]:
    """Hide torch's kernel for joined sequences, so that each sequence runs by itself."""
    from worker.training import attention

    kernel = attention.varlen_attn
    try:
        if not is_used:
            attention.varlen_attn = None
        yield
    finally:
        attention.varlen_attn = kernel


def product_speed(device: str, size: int) -> float:
    """Return floating-point operations per second of a square product in the training type."""
    import torch

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds: list[float] = []
    for _ in range(10):
        wait()
        began = time.perf_counter()
        left @ right
        wait()
        seconds.append(time.perf_counter() - began)
    return 2.0 * size**3 / statistics.median(seconds[2:])


def write(given: argparse.Namespace, speed: float, results: Sequence[Mapping[str, Any]]) -> None:
    import torch

    now = datetime.now(UTC)
    out = given.out or ROOT / "bench" / "results" / f"gpu-{now:%Y-%m-%d}.json"
    name = torch.cuda.get_device_name() if given.device == "cuda" else platform.processor()
    content = {
        "date": now.isoformat(timespec="seconds"),
        "device": name,
        "torch": str(torch.__version__),
        "product_flops_per_second": speed,
        "cases": list(results),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written to {out}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model in place of every size")
    parser.add_argument("--parts", type=int, nargs="+", choices=(1, 2, 3), default=[1, 2, 3])
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path, help="default: bench/results/gpu-DATE.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
