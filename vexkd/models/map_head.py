"""BEVFusion's map segmentation head: `high`, sampled at the label cells' centres, to six binary maps with a focal loss.

B batch, C channels, K map classes, Y X BEV, Y' X' label cells. The label grid is coarser or finer than the features' and lies
within it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexkd.batch import Batch
from vexkd.geometry import BevGrid
from vexkd.models.blocks import conv_norm_act
from vexkd.models.losses import focal_loss
from vexkd.models.targets import Counts, Targets


class MapHead(nn.Module):
    """`high` (B, C, Y, X) on `grid` -> logits (B, K, Y', X') on `labels`; both convolutions keep the width C.

    gamma: focusing power of the loss.
    """

    has_queries = False
    box_maps = None

    def __init__(self, *, in_channels: int, grid: BevGrid, labels: BevGrid, classes: int, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("places", sampling_places(grid, labels), persistent=False)  # Y' X' 2
        self.classifier = nn.Sequential(
            conv_norm_act(in_channels, in_channels),
            conv_norm_act(in_channels, in_channels),
            nn.Conv2d(in_channels, classes, 1),
        )

    def forward(self, high: Tensor) -> Tensor:
        return self.classifier(self.resample(high))

    def resample(self, high: Tensor) -> Tensor:
        """The features at the label cells' centres, bilinear, zero beyond their grid: (B, C, Y', X') float32."""
        places = self.places.expand(len(high), -1, -1, -1)
        with torch.autocast(high.device.type, enabled=False):  # half precision would move the places by cells
            return F.grid_sample(high.float(), places, mode="bilinear", padding_mode="zeros", align_corners=False)

    def targets(self, batch: Batch) -> Targets:
        """The map classes (B, K, Y', X') of the label cells, 0 or 1; count: `samples`."""
        return Targets(batch.maps, {"samples": torch.tensor(float(len(batch.maps)), device=batch.maps.device)})

    def loss(self, predictions: Tensor, targets: Targets, counts: Counts) -> dict[str, Tensor]:
        """Sigmoid focal loss without class weights: mean over cells and samples, sum over classes."""
        with torch.autocast(predictions.device.type, enabled=False):
            each = focal_loss(predictions.float(), targets.values.float(), gamma=self.gamma)  # B K Y' X'
            return {"map": each.mean(dim=(2, 3)).sum() / counts.share("samples")}

    def probabilities(self, predictions: Tensor) -> Tensor:
        """Of each class in each cell, (B, K, Y', X') float32."""
        return predictions.float().sigmoid()


def sampling_places(grid: BevGrid, labels: BevGrid) -> Tensor:
    """Where the cells of `labels` have their centres in maps on `grid`, (Y', X', 2) as grid_sample counts: -1 to 1, x y."""
    rows, columns = labels.shape
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    centres = labels.to_metres(torch.stack([column, row], dim=-1).double() + 0.5)  # Y' X' 2
    sizes = centres.new_tensor([grid.shape[1], grid.shape[0]])
    return (2 * grid.to_cells(centres) / sizes - 1).float()
