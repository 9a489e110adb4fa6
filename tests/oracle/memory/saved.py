"""What autograd saves for backward: bytes of distinct storages, parameters and inputs left out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock


def saved_bytes(
    run: Callable[[], Any], *, parameters: list[Any], given: list[Any]
) -> tuple[int, list[tuple[tuple[int, ...], str, int]]]:
    """Return the bytes that `run` leaves saved, and (shape, dtype, bytes) of each storage.

    `given` are tensors that all layers share, beside the parameters: masks, rotary tables. Storages
    are kept alive to the end, so that no address is met twice.
    """
    import torch

    ignored = {t.untyped_storage()._cdata for t in (*parameters, *given)}
    seen: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in ignored:
            seen.setdefault(storage._cdata, (tensor, storage))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    rows = [(tuple(t.shape), str(t.dtype), storage.nbytes()) for t, storage in seen.values()]
    del out
    return sum(row[2] for row in rows), rows


@contextlib.contextmanager
def dropout_as_cuda() -> Iterator[None]:
    """Keep a dropout's mask in one byte an element, as CUDA's kernel does; the CPU's keeps two."""
    import torch

    def dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        return torch.native_dropout(x, p, training)[0] if training and p > 0 else x

    with mock.patch.object(torch.nn.functional, "dropout", dropout):
        yield
