"""A batch of augmented images, gathered and normalised, in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cpfast import _backend, reference
from cpfast.forms import shown
from cpfast.ops._common import OPS, REFERENCE, check_devices, check_tensors, real, whole

__all__ = ["augment_batch"]


@torch.no_grad()
def augment_batch(
    images: Tensor,
    index: Tensor,
    *,
    seed: int,
    epoch: int,
    repeat: int | Tensor = 0,
    flip: bool = False,
    shift: float = 0.0,
    rotation: float = 0.0,
    crop: int = 0,
    cutout: int = 0,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Gathers samples, augments each by draws of its own, and normalises them: in one pass.

    In this order, all off unless asked for: random crop, rotation and shift (bilinear, with the
    nearest edge pixel outside), flip, (image / 255 - mean) / std, cutout, averaging to ``size``.

    The draws are a function of (seed, epoch, sample, repeat) alone: the same on every device and
    rank, in whatever batch the sample comes, and nothing needs saving to repeat them. Not
    differentiable: the result never requires a gradient.

    Args:
        images: [N, H, W, C] uint8, contiguous; C from 1 to 4.
        index: [B] int64 or int32 in [0, N).
        seed, epoch: integers; each pair is a draw of its own.
        repeat: the how-manieth time of the epoch it is that a sample is drawn, where it is drawn
            several times: an integer from 0 on, or [B] int64 or int32 of them.
        flip: left to right, with probability 1/2.
        shift: largest shift, down and right, as a share of the height and of the width, in [0, 1].
        rotation: largest rotation in degrees, in [0, 180].
        crop: pixels of reflection padding from which an image of the same size is cut, below H
            and W.
        cutout: side in pixels of the square that is set to 0, that is to the mean.
        mean, std: C numbers each, for images in [0, 1]: a sequence, or a tensor on the CPU. The
            mean may also be an image: [H, W, C] float32, on the device of the images.
        dtype: torch.float32, torch.bfloat16 or torch.float16.
        size: height and width, at most those of the images, to whose pixels their areas are
            averaged, in float32: a pixel is the mean over the area that it covers, where areas cut
            pixels too. None: as the images.

    Returns:
        [B, C, H, W] in ``dtype``, channels last in memory.

    Raises:
        RuntimeError: for wrong shapes, dtypes, devices or values, or an index out of range (on
            the CPU; on CUDA that stops the device, as torch's own indexing does).
        TypeError: for an argument of another type.

    Sources: rotation, shift and flip as in the paper's Keras pipeline (arXiv 2506.15954); cutout,
    DeVries and Taylor (arXiv 1708.04552).
    """
    op = "augment_batch"
    check_tensors(op, images=images, index=index)
    seed, epoch, crop, cutout = (
        whole(op, name, value)
        for name, value in (("seed", seed), ("epoch", epoch), ("crop", crop), ("cutout", cutout))
    )
    if not isinstance(repeat, Tensor):
        repeat = whole(op, "repeat", repeat)
    shift, rotation = real(op, "shift", shift), real(op, "rotation", rotation)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"cpfast::{op}: dtype: expected a floating dtype, got {dtype!r}")
    if size is not None:
        size = _pair(size)
    if REFERENCE:
        return reference.augment_batch(
            images,
            index,
            seed=seed,
            epoch=epoch,
            repeat=repeat,
            flip=flip,
            shift=shift,
            rotation=rotation,
            crop=crop,
            cutout=cutout,
            mean=mean,
            std=std,
            dtype=dtype,
            size=size,
        )
    _backend.require_kernels("augment_batch", "images", images.device)
    is_image = isinstance(mean, Tensor) and mean.dim() != 1
    repeats, repeat = (repeat.contiguous(), 0) if isinstance(repeat, Tensor) else (None, repeat)
    out = OPS.augment_batch(
        images,
        index.contiguous(),
        repeats,
        mean if is_image else None,
        [] if is_image else _numbers("mean", mean),
        _numbers("std", std),
        seed,
        epoch,
        repeat,
        bool(flip),
        shift,
        rotation,
        crop,
        cutout,
        dtype,
        *(size or ()),
    )
    return out.permute(0, 3, 1, 2)


def _pair(size: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise TypeError(f"cpfast::augment_batch: size: expected two integers, got {shown(size)}")
    height, width = (whole("augment_batch", f"size[{i}]", side) for i, side in enumerate(size))
    return height, width


def _numbers(name: str, values: Sequence[float] | Tensor | None) -> list[float]:
    if values is None:
        return []
    if isinstance(values, Tensor):
        if values.device.type != "cpu":
            raise RuntimeError(
                f"cpfast::augment_batch: {name}: expected numbers on the CPU, for reading them "
                f"from a device waits for it; got a tensor on {values.device}"
            )
        values = values.tolist()
    if not isinstance(values, Iterable):
        raise TypeError(f"cpfast::augment_batch: {name}: expected a sequence, got {values!r}")
    return [real("augment_batch", f"{name}[{i}]", value) for i, value in enumerate(values)]


if not REFERENCE:

    @torch.library.register_fake("cpfast::augment_batch")
    def _(
        images: Tensor,
        index: Tensor,
        repeats: Tensor | None,
        mean: Tensor | None,
        means: list[float],
        stds: list[float],
        seed: int,
        epoch: int,
        repeat: int,
        flip: bool,
        shift: float,
        rotation: float,
        crop: int,
        cutout: int,
        dtype: torch.dtype,
        height: int | None = None,
        width: int | None = None,
    ) -> Tensor:
        check_devices("augment_batch", images=images, index=index, repeat=repeats, mean=mean)
        _, rows, columns, channels = images.shape
        rows, columns = rows if height is None else height, columns if width is None else width
        return images.new_empty((index.shape[0], rows, columns, channels), dtype=dtype)
