"""Lift-splat pooling (as in BEVFusion): image features, spread along their depth distribution, summed per BEV cell.

Dimensions: B batch, N cameras, D depth bins, H W image cells, C channels, Y X BEV; M = N H W pixels of a batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vexkd.ops import kernels


def lift_pool(depth: Tensor, context: Tensor, cells: Tensor, size: tuple[int, int]) -> Tensor:
    """out[b, :, cell] = sum of depth * context over all frustum points that fall into the cell.

    depth (B, N, D, H, W); context (B, N, C, H, W); cells (B, N, D, H, W) integer y * X + x, negative outside;
    size (Y, X). Returns (B, C, Y, X), float32 for half-precision input. The N D H W C frustum tensor is never made.
    The same input gives the same bits, on the CPU and on the GPU, where Triton sums half precision as it is read.
    """
    if cells.shape != depth.shape:
        raise ValueError(f"cells {tuple(cells.shape)} and depth {tuple(depth.shape)} must have one shape")
    if kernels.ready(depth):
        from vexkd.ops.bev_pool_triton import pixel_sums
    else:
        depth, context = _at_least_float32(depth, context)
        pixel_sums = _PixelSums.apply
    (batch, cameras, bins), channels = depth.shape[:3], context.shape[2]
    area, pixels = size[0] * size[1], batch * cameras * depth.shape[3] * depth.shape[4]
    numbers = cells + area * torch.arange(batch, device=cells.device).view(-1, 1, 1, 1, 1)
    numbers = torch.where(cells >= 0, numbers, batch * area).int()
    pooled = pixel_sums(
        depth.movedim(2, -1).reshape(pixels, bins),  # M D
        context.movedim(2, -1).reshape(pixels, channels),  # M C
        numbers.movedim(2, -1).reshape(pixels, bins),  # M D
        batch * area,
    )
    return pooled.view(batch, *size, channels).permute(0, 3, 1, 2).contiguous()  # B C Y X


class _PixelSums(torch.autograd.Function):
    """sums[cell] = sum over (pixel, bin) with numbers[pixel, bin] == cell of depth[pixel, bin] * context[pixel].

    A product of a sparse matrix (cells x pixels) with a dense one. `embedding_bag` computes it row by row, without
    atomic sums: by cell in the forward pass, by pixel in the backward pass.
    """

    @staticmethod
    def forward(ctx, depth: Tensor, context: Tensor, numbers: Tensor, cells: int) -> Tensor:
        ctx.save_for_backward(depth, context, numbers)
        ctx.cells = cells
        sorted_numbers, order = torch.sort(numbers.flatten(), stable=True)
        bounds = torch.arange(cells + 1, device=numbers.device, dtype=numbers.dtype)
        offsets = torch.searchsorted(sorted_numbers, bounds, out_int32=True)
        order = order[: offsets[-1]]  # points outside the grid have the highest number
        pixels = order.div(depth.shape[1], rounding_mode="floor").int()
        return F.embedding_bag(
            pixels, context, offsets, mode="sum", per_sample_weights=depth.flatten()[order], include_last_offset=True
        )

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        depth, context, numbers = ctx.saved_tensors
        outside = numbers >= ctx.cells
        places = numbers.masked_fill(outside, 0)
        weights = depth.masked_fill(outside, 0.0).requires_grad_()
        with torch.enable_grad():  # d(sums of grad per pixel) / d(weights), times context, is the gradient of depth
            grad_context = F.embedding_bag(places, grad.contiguous(), mode="sum", per_sample_weights=weights)
        (grad_depth,) = torch.autograd.grad(grad_context, weights, context)
        return grad_depth.masked_fill(outside, 0.0), grad_context.detach(), None, None


def lift_pool_plain(depth: Tensor, context: Tensor, cells: Tensor, size: tuple[int, int]) -> Tensor:
    """`lift_pool` by the outer product of depth and context, then one sum per cell."""
    depth, context = _at_least_float32(depth, context)
    batch, channels, area = len(depth), context.shape[2], size[0] * size[1]
    lifted = depth.unsqueeze(-1) * context.movedim(2, -1).unsqueeze(2)  # B N D H W C
    numbers = cells + area * torch.arange(batch, device=cells.device).view(-1, 1, 1, 1, 1)
    inside = cells.flatten() >= 0
    pooled = lifted.new_zeros(batch * area, channels)
    pooled = pooled.index_add(0, numbers.flatten()[inside], lifted.reshape(-1, channels)[inside])
    return pooled.view(batch, *size, channels).permute(0, 3, 1, 2).contiguous()  # B C Y X


def _at_least_float32(depth: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(depth.dtype, context.dtype), torch.float32)
    return depth.to(dtype), context.to(dtype)
