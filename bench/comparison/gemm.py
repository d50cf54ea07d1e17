"""How fast this machine multiplies matrices of the model's own shapes; run as a process.

Times, for one decoder layer and the LM head, the two products that training with a frozen weight
needs: `x @ W.T` forward and `g @ W` backward. Once with torch's own product, and once with oneDNN,
which torch brings along and which is faster than MKL on processors that are not Intel's.

Usage: gemm.py SHAPE.json NUM_TOKENS NUM_TARGETS NUM_THREADS
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_REPEATS = 7
_MIN_TARGETS = 16
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def main() -> None:
    shape = json.loads(Path(sys.argv[1]).read_text())
    num_tokens, num_targets, num_threads = map(int, sys.argv[2:5])
    torch.set_num_threads(num_threads)
    head = (shape["hidden_size"], shape["vocabulary"])
    # The layers weigh as often as the model has them.
    work = [(num_tokens, *linear, shape["num_layers"]) for linear in shape["linears"]]
    work.append((max(num_targets, _MIN_TARGETS), *head, 1))
    products: dict[str, Product] = {"torch": lambda x, weight: x @ weight.T}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        products["oneDNN"] = _onednn
    with torch.inference_mode():
        print(json.dumps({name: _speed(product, work) for name, product in products.items()}))


def _speed(product: Product, work: list[tuple[int, int, int, int]]) -> float:
    """Return floating-point operations per second over all of the work."""
    flops = seconds = 0.0
    for num_rows, inputs, outputs, times in work:
        weight = torch.randn(outputs, inputs)
        x, gradient = torch.randn(num_rows, inputs), torch.randn(num_rows, outputs)
        forward = _median_seconds(product, x, weight)
        backward = _median_seconds(product, gradient, weight.T)
        flops += times * 4.0 * num_rows * inputs * outputs
        seconds += times * (forward + backward)
    return flops / seconds


def _median_seconds(product: Product, x: torch.Tensor, weight: torch.Tensor) -> float:
    product(x, weight)  # the first call plans and allocates
    seconds: list[float] = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        product(x, weight)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _onednn(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    operation: Any = torch.ops.mkldnn._linear_pointwise
    return operation(x, weight, None, "none", [], "")


if __name__ == "__main__":
    main()
