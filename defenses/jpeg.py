"""JPEG: compress and decode an image before the victim sees it."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from robustbench_med.declarations import defense
from robustbench_med.defense import Defended
from robustbench_med.types import Images
from robustbench_med.victim import Victim

from .wrap import check_whole, wrapped

_BLOCK = 8
# from R, G, B to Y, Cb, Cr: JFIF 1.02, page 3
_LUMA = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


@defense(
    title="JPEG",
    summary="Compresses the image by JPEG and decodes it.",
    source="Guo et al., ICLR 2018, section 4.2",
    version=1,
    aliases=("jpeg_compression",),
    kind="transform",
)
def jpeg(victim: Victim, *, quality: int = 75) -> Defended:
    """Return the victim behind lossy compression by the real codec (libjpeg, by Pillow).

    Three channels without names, or named red, green and blue, are stored as a colour image, with
    chroma at half resolution. All other channels, and the slices of a volume, are stored as
    separate grey images. Files have 8 bits per value.

    Args:
        victim: the undefended victim.
        quality: quality of the JPEG codec, in 1..100; a lower one loses more.

    Returns:
        The victim with JPEG in front. The gradient of the judge is 0. The guide is a JPEG made of
        cosines and matrix products, whose rounding has a slope.

    Raises:
        SpecError: the quality is not in 1..100.

    Source: Guo et al., ICLR 2018, section 4.2 (quality 75). The guide and its rounding are those of
        Shin and Song, "JPEG-resistant adversarial images", NIPS workshop 2017; on `fundus_resnet`
        PGD succeeds on more images with it than with the identity.
    """
    check_whole("quality", quality, 1, 100)
    tables = tables_of(quality)
    colour = victim.contract.channels == 3 and len(victim.contract.size) == 2
    colour = colour and victim.contract.names in ((), ("red", "green", "blue"))

    def compressed(x: Images) -> Images:
        read = codec_round_trip(x if colour else _planes(x), quality=quality)
        return read.view_as(x).to(x) + 0 * x  # a gradient of 0, like that of any rounding

    def view(x: Images) -> Images:
        return differentiable_jpeg(x if colour else _planes(x), tables, rounding=cubic).view_as(x)

    return wrapped(victim, compressed, view=view)


def _planes(x: Images) -> Tensor:
    """Return every channel, and every slice of a volume, as a grey image `(n, 1, h, w)`."""
    return x.reshape(-1, 1, *x.shape[-2:])


def codec_round_trip(x: Tensor, *, quality: int) -> Tensor:
    """Return images `(n, 1 or 3, h, w)` in [0,1] after encoding and decoding them one by one.

    This uses Pillow. The codec of torchvision takes lists of images but is deprecated since 0.29.
    """
    grey = x.detach().clamp(0, 1).mul(255).round().to(torch.uint8).movedim(1, -1).cpu().numpy()
    grey = grey[..., 0] if x.shape[1] == 1 else grey
    read = torch.from_numpy(np.stack([_read(image, quality) for image in grey]))
    return (read[:, None] if x.shape[1] == 1 else read.movedim(-1, 1)).float().div(255)


def _read(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def tables_of(quality: int) -> Tensor:
    """Return the codec's quantisation tables `(3, 8, 8)` of Y, Cb and Cr, as Pillow stores them."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (_BLOCK, _BLOCK)).save(file, "JPEG", quality=quality)
    tables = Image.open(file).quantization  # type: ignore[attr-defined]
    return torch.tensor([tables[0], tables[1], tables[1]]).view(3, _BLOCK, _BLOCK).float()


def cubic(c: Tensor) -> Tensor:
    """Return `c` rounded, plus the cube of the rounding error; its slope is 0 at integers only."""
    whole_part = c.detach().round()
    return whole_part + (c - whole_part) ** 3


def differentiable_jpeg(
    x: Tensor, tables: Tensor, *, rounding: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return images `(n, 1 or 3, h, w)` in [0,1] after the lossy steps of JPEG.

    The rounding to 8 bits before and after, and libjpeg's own interpolation of chroma, are not
    modelled.

    Args:
        x: images; their edge is repeated to fill whole blocks.
        tables: `(3, 8, 8)` quantisation tables, see `tables_of`.
        rounding: rounds the coefficients.
    """
    h, w = x.shape[2:]
    colour = x.shape[1] == 3
    block = 2 * _BLOCK if colour else _BLOCK
    x = F.pad(x * 255, (0, -w % block, 0, -h % block), mode="replicate")
    tables = tables.to(x)
    if colour:
        to_luma = x.new_tensor(_LUMA)
        x = torch.einsum("kc,nchw->nkhw", to_luma, x)
        chroma = _quantised(F.avg_pool2d(x[:, 1:], 2), tables[1:], rounding)
        chroma = F.interpolate(chroma, scale_factor=2.0, mode="bilinear")
        luma = _quantised(x[:, :1] - 128, tables[:1], rounding) + 128
        ycc = torch.cat([luma, chroma], 1)
        decoded = torch.einsum("kc,nchw->nkhw", torch.linalg.inv(to_luma), ycc)
    else:
        decoded = _quantised(x - 128, tables[:1], rounding) + 128
    return decoded[:, :, :h, :w].div(255).clamp(0, 1)


def _quantised(x: Tensor, tables: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """Return planes `(n, c, h, w)` with the cosine coefficients of each block rounded."""
    from scipy.fft import dct

    cosines = x.new_tensor(dct(torch.eye(_BLOCK).numpy(), norm="ortho", axis=0))
    n, c, h, w = x.shape
    blocks = x.view(n, c, h // _BLOCK, _BLOCK, w // _BLOCK, _BLOCK)
    coefficients = torch.einsum("ui,nchiwj,vj->nchwuv", cosines, blocks, cosines)
    steps = tables[:, None, None]
    rounded = rounding(coefficients / steps) * steps
    return torch.einsum("ui,nchwuv,vj->nchiwj", cosines, rounded, cosines).reshape(x.shape)
