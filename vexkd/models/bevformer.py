"""BEVFormer's view transform without history (BEVFormer-S): learned BEV queries look into the images where their pillar shows.

B batch, N cameras, L levels, C channels, H W feature map, Y X BEV, Q = Y * X queries, D heights of a pillar, M packed queries of
a camera, K points. All geometry is float32. Frames: LiDAR (augmented) -> LiDAR -> camera -> image -> image (augmented).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vexkd.batch import Batch
from vexkd.geometry import BevGrid
from vexkd.models.blocks import feed_forward
from vexkd.ops.deformable_attention import deformable_sample, reference_points, start_as_star

# Distance in metres of a pillar's lowest and highest point from the bottom and top of the range (BEVFormer).
PILLAR_MARGIN = 0.5
# Depth in metres from which a point counts as in front of a camera (BEVFormer).
NEAREST = 1e-5


@dataclass
class Hits:
    """Which cells each camera sees, packed: for every camera of every sample the same number M of places, not all filled.

    cells (B*N, M): numbers of the cells. filled (B*N, M). places (B*N, M, D, 2): where the cell's pillar lies in the image,
    (u, v) in [0, 1]. cameras (B, Q): number of cameras that see a cell, at least 1.
    """

    cells: Tensor
    filled: Tensor
    places: Tensor
    cameras: Tensor


class BEVFormerView(nn.Module):
    """Camera features (B, N, in_channels, H, W) of `levels` sizes to a BEV map (B, channels, Y, X).

    cameras: how many have an embedding. layers: of self-attention among the queries, attention into the images, feed-forward.
    points: of the self-attention, per head. image_points: of the attention into the images, per head and level; they are
    shared out among the `pillar` heights of a cell. recompute: forget what is inside a layer and compute it again on the way
    back, for memory. BEVFormer's ego motion (CAN bus) and history have no part here.
    """

    learns_depth = False

    def __init__(
        self,
        *,
        in_channels: int,
        bounds: Sequence[float],
        cell: float,
        channels: int,
        cameras: int,
        levels: int,
        layers: int,
        heads: int,
        points: int,
        image_points: int,
        pillar: int,
        ffn: int,
        dropout: float,
        query_std: float,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if image_points % pillar:
            raise ValueError(f"image_points ({image_points}) must be a multiple of pillar ({pillar})")
        self.grid, self.levels, self.pillar, self.recompute = BevGrid(tuple(bounds), cell), levels, pillar, recompute
        self.shape, self.out_channels = self.grid.shape, channels
        rows, columns = self.shape
        self.query = nn.Parameter(query_std * torch.randn(rows * columns, channels))
        self.rows = nn.Parameter(torch.rand(rows, channels // 2))
        self.columns = nn.Parameter(torch.rand(columns, channels // 2))
        self.camera_code = nn.Parameter(torch.randn(cameras, in_channels))
        self.level_code = nn.Parameter(torch.randn(levels, in_channels))
        sizes = {"channels": channels, "heads": heads, "points": points, "image_points": image_points, "ffn": ffn}
        self.layers = nn.ModuleList(
            BEVFormerLayer(value_channels=in_channels, levels=levels, pillar=pillar, dropout=dropout, **sizes)
            for _ in range(layers)
        )

    def forward(self, features: Sequence[Tensor], batch: Batch) -> Tensor:
        """features: `levels` maps (B, N, in_channels, H, W) of the images in `batch`, finest first -> (B, channels, Y, X)."""
        if len(features) != self.levels:
            raise ValueError(f"the view is built for {self.levels} levels, the neck gave {len(features)}")
        with torch.autocast(features[0].device.type, enabled=False):
            hits = pack(*self.pillars_in_images(batch))
        shapes = [tuple(level.shape[-2:]) for level in features]
        values = torch.cat(
            [self._flatten(level, code) for level, code in zip(features, self.level_code, strict=True)], 1
        )
        query = self.query[None].expand(len(batch), -1, -1)  # B Q C
        position = self.position()
        for layer in self.layers:
            given = (query, position, self.shape, values, shapes, hits)
            if self.recompute and torch.is_grad_enabled():
                query = checkpoint(layer, *given, use_reentrant=False)
            else:
                query = layer(*given)
        return query.transpose(1, 2).unflatten(2, self.shape)  # B C Y X

    def _flatten(self, level: Tensor, code: Tensor) -> Tensor:
        """One level with its camera and level codes: (B, N, C, H, W) -> (B*N, H*W, C)."""
        cells = level.flatten(3).transpose(2, 3)  # B N H*W C
        return (cells + (self.camera_code[:, None] + code).to(cells.dtype)).flatten(0, 1)

    def position(self) -> Tensor:
        """Learned column and row codes of every cell (1, Q, C), the column's first as in the published weights."""
        rows, columns = self.shape
        grid = [self.columns[None].expand(rows, -1, -1), self.rows[:, None].expand(-1, columns, -1)]
        return torch.cat(grid, dim=-1).flatten(0, 1)[None]

    @torch.no_grad()
    def pillars_in_images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Places (B, N, Q, D, 2) of the cells' pillars in the augmented images, and which of them are seen (B, N, Q, D).

        A place is (u / W, v / H) of a pixel's coordinates, as published, whose whole numbers are the pixels' centres.
        """
        points = self.pillars(batch.images.device).flatten(0, 1)  # Q*D 3
        undo = torch.linalg.inv(batch.lidar_augment.float())
        camera_from_augmented = batch.camera_from_lidar.float() @ undo[:, None]  # B N 4 4
        camera = points @ camera_from_augmented[..., :3, :3].mT + camera_from_augmented[..., None, :3, 3]  # B N Q*D 3
        depth = camera[..., 2]
        homogeneous = camera / depth.clamp(min=NEAREST)[..., None] @ batch.intrinsics.float().mT
        pixels = homogeneous @ batch.image_augment.float().mT
        height, width = batch.images.shape[-2:]
        places = pixels[..., :2] / pixels[..., 2:] / pixels.new_tensor([width, height])  # B N Q*D 2
        visible = (depth > NEAREST) & ((places > 0) & (places < 1)).all(-1)
        return places.unflatten(2, (-1, self.pillar)), visible.unflatten(2, (-1, self.pillar))

    def pillars(self, device: torch.device | str = "cpu") -> Tensor:
        """Points (Q, D, 3) of every cell's pillar, augmented LiDAR frame."""
        centre = reference_points(*self.shape, device=device)[0]  # Q 2, in [0, 1]
        x0, y0, z0, x1, y1, z1 = self.grid.bounds
        xy = centre * centre.new_tensor([x1 - x0, y1 - y0]) + centre.new_tensor([x0, y0])
        z = torch.linspace(z0 + PILLAR_MARGIN, z1 - PILLAR_MARGIN, self.pillar, device=device)
        return torch.cat(
            [xy[:, None].expand(-1, self.pillar, -1), z[None, :, None].expand(len(xy), -1, -1)], dim=-1
        )  # Q D 3


def pack(places: Tensor, visible: Tensor) -> Hits:
    """Keep per camera the cells of which it sees some height: places (B, N, Q, D, 2) and seen (B, N, Q, D) -> `Hits`."""
    hit = visible.any(-1)  # B N Q
    flat = hit.flatten(0, 1)
    counts = flat.sum(1)  # B*N
    longest = max(int(counts.max()), 1)
    cells = flat.byte().argsort(dim=1, descending=True, stable=True)[:, :longest]  # B*N M, those hit in their order
    filled = torch.arange(longest, device=cells.device) < counts[:, None]
    camera = torch.arange(len(cells), device=cells.device)[:, None]
    return Hits(cells, filled, places.flatten(0, 1)[camera, cells], hit.sum(1).clamp(min=1))


class BEVFormerLayer(nn.Module):
    """Self-attention, attention into the images, feed-forward; each followed by its sum and norm."""

    def __init__(
        self,
        *,
        channels: int,
        value_channels: int,
        heads: int,
        points: int,
        image_points: int,
        levels: int,
        pillar: int,
        ffn: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.itself = HistoryFreeAttention(channels=channels, heads=heads, points=points)
        self.images = ImageAttention(
            channels=channels,
            value_channels=value_channels,
            heads=heads,
            points=image_points,
            levels=levels,
            pillar=pillar,
        )
        self.feed_forward = feed_forward(channels, ffn, dropout)
        for linear in (self.feed_forward[0], self.feed_forward[3]):
            nn.init.xavier_uniform_(linear.weight)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        position: Tensor,
        shape: tuple[int, int],
        values: Tensor,
        shapes: list[tuple[int, int]],
        hits: Hits,
    ) -> Tensor:
        """query (B, Q, C), position (1, Q, C), values (B*N, S, C') of all levels -> (B, Q, C).

        As in the published code only the self-attention is told where its queries are.
        """
        query = self.norms[0](query + self.dropout(self.itself(query, position, shape)))
        query = self.norms[1](query + self.dropout(self.images(query, values, shapes, hits)))
        return self.norms[2](query + self.dropout(self.feed_forward(query)))


class HistoryFreeAttention(nn.Module):
    """BEVFormer's temporal self-attention where there is no past: the map of the past is the query itself.

    Offsets and weights come from [past; query with its position]; each of the two queues has points and a softmax of its own,
    the output is the mean of both. The past is concatenated sample by sample (the published code mixes up samples here as
    soon as a GPU has more than one).
    """

    def __init__(self, *, channels: int, heads: int, points: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels ({channels}) must be a multiple of heads ({heads})")
        self.heads, self.points = heads, points
        self.offsets = nn.Linear(2 * channels, heads * 2 * points * 2)
        self.weights = nn.Linear(2 * channels, heads * 2 * points)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        start_as_star(self, levels=2)

    def forward(self, query: Tensor, position: Tensor, shape: tuple[int, int]) -> Tensor:
        """query (B, Q, C), position (1, Q, C) -> (B, Q, C)."""
        context = torch.cat([query, query + position], dim=-1)
        layout = (*query.shape[:2], self.heads, 2, self.points)
        offsets = self.offsets(context).view(*layout, 2)  # B Q heads 2 K 2, in cells
        weights = self.weights(context).view(layout).softmax(-1) / 2
        reference = reference_points(*shape, device=query.device)[:, :, None, None, None]  # 1 Q 1 1 1 2
        locations = reference + offsets / reference.new_tensor([shape[1], shape[0]])
        value = self.value(query).unflatten(-1, (self.heads, -1))  # B Q heads dim
        # Both queues read one map: their points are those of one attention.
        both = (locations.flatten(3, 4).unsqueeze(3), weights.flatten(3).unsqueeze(3))
        return self.output(deformable_sample(value, [shape], *both))


class ImageAttention(nn.Module):
    """BEVFormer's spatial cross-attention: each query looks around its pillar in every camera that sees some of it.

    Point p of a head and level looks around height p % D. The outputs of the cameras are averaged, then projected.
    """

    def __init__(
        self, *, channels: int, value_channels: int, heads: int, points: int, levels: int, pillar: int
    ) -> None:
        super().__init__()
        self.heads, self.points, self.levels, self.pillar = heads, points, levels, pillar
        self.offsets = nn.Linear(channels, heads * levels * points * 2)
        self.weights = nn.Linear(channels, heads * levels * points)
        self.value = nn.Linear(value_channels, channels)
        self.output = nn.Linear(channels, channels)
        start_as_star(self, levels=levels)

    def forward(self, query: Tensor, values: Tensor, shapes: list[tuple[int, int]], hits: Hits) -> Tensor:
        """query (B, Q, C), values (B*N, S, C') of all levels -> (B, Q, C)."""
        batch, queries, channels = query.shape
        cameras = len(values) // batch
        sample = torch.arange(len(values), device=query.device)[:, None] // cameras  # B*N 1
        packed = query[sample, hits.cells]  # B*N M C
        layout = (*packed.shape[:2], self.heads, self.levels, self.points)
        offsets = self.offsets(packed).view(*layout[:-1], -1, self.pillar, 2)  # B*N M heads L K/D D 2, in cells
        weights = self.weights(packed).view(*layout[:3], -1).softmax(-1).view(layout)
        cells = torch.tensor([(w, h) for h, w in shapes], device=query.device, dtype=hits.places.dtype)  # L 2
        locations = hits.places[:, :, None, None, None] + offsets / cells[:, None, None]
        value = self.value(values).unflatten(-1, (self.heads, -1))  # B*N S heads dim
        seen = deformable_sample(value, shapes, locations.flatten(4, 5), weights)  # B*N M C
        total = seen.new_zeros(batch * queries, channels)
        for camera in range(cameras):  # within a camera no cell occurs twice: every sum has one order
            mine = slice(camera, None, cameras)
            target = (hits.cells[mine] + queries * sample[mine])[hits.filled[mine]]
            total = total.index_add(0, target, seen[mine][hits.filled[mine]])
        return self.output(total.view(batch, queries, channels) / hits.cameras[..., None])
