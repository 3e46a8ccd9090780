"""Tensors that behave like those of a device without float64, such as Apple's mps, on any machine."""

import torch
from torch import Tensor


class WithoutFloat64(Tensor):
    """A tensor whose results are of its own class, so that none may become float64 before it is copied to the CPU."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is Tensor.cpu or (function is Tensor.to and isinstance(args[-1], torch.device)):
            return args[0].as_subclass(Tensor)
        result = super().__torch_function__(function, types, args, kwargs or {})
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, cls) and value.dtype == torch.float64:
                raise TypeError(f"{function.__name__}: this device does not have float64")
        return result


def on_device(tensor: Tensor) -> WithoutFloat64:
    return tensor.as_subclass(WithoutFloat64)
