"""BEVDet4D's camera branch: frames land in the current frame, the past gives no gradients, samples don't see each other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from counted import depth_loss
from torch import Tensor, nn

from vexkd.batch import Batch
from vexkd.models import lss
from vexkd.models.lss import LiftSplat
from vexkd.models.temporal import TemporalCameraBranch, frame_of

CELL, HALF = 1.2, 12.0
FORWARD = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0.2], [0, 1, 0, 0], [0, 0, 0, 1]])  # camera_from_lidar: y is forward
FRAMES, CAMERAS = 3, 2


class Encoder(nn.Module):
    """Images to one map of a channel per colour, an eighth the size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, stride=8)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.conv(images.flatten(0, 1)).unflatten(0, images.shape[:2])]


def view(**more) -> LiftSplat:
    settings = {
        "in_channels": 6, "channels": 4, "bounds": (-HALF, -HALF, -5.0, HALF, HALF, 3.0), "z": (-10.0, 10.0),
        "depth": (1.0, 13.0, 1.0), "step": CELL, "cell": CELL, "stride": 8, "depth_net": "bevdepth", "aspp_channels": 4,
    }  # fmt: skip
    return LiftSplat(**{**settings, **more})


def branch(start_epoch: int = 2, **more) -> TemporalCameraBranch:
    torch.manual_seed(0)
    return TemporalCameraBranch(
        encoder=Encoder(), view=view(**more), frames=FRAMES, channels=4, start_epoch=start_epoch
    )


def motion(step: int, turn: float = 0.1) -> Tensor:
    """earlier_from_current LiDAR frame, `step` frames back: the car moved 1.5 m forward and turned."""
    c, s = np.cos(turn * step), np.sin(turn * step)
    return torch.tensor([[c, -s, 0, 0], [s, c, 0, 1.5 * step], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float32)


def batch(size: int = 2, points: bool = True) -> Batch:
    """Two cameras (forward, backward) over three frames."""
    generator = torch.Generator().manual_seed(1)
    back = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0]))
    cameras = torch.stack([FORWARD @ turn @ motion(f) for f in range(FRAMES) for turn in (torch.eye(4), back)])
    cloud = torch.rand(size, 300, 5, generator=generator) * torch.tensor([20.0, 20.0, 3.0, 1.0, 0.0])
    return Batch(
        token=[str(i) for i in range(size)],
        points=list(cloud - torch.tensor([10.0, 10.0, 1.5, 0.0, 0.0])) if points else None,
        images=torch.randn(size, FRAMES * CAMERAS, 3, 32, 64, generator=generator),
        intrinsics=torch.tensor([[40.0, 0, 32.0], [0, 40.0, 16.0], [0, 0, 1]]).expand(size, FRAMES * CAMERAS, 3, 3),
        camera_from_lidar=cameras.expand(size, -1, 4, 4),
        image_augment=torch.eye(3).expand(size, FRAMES * CAMERAS, 3, 3),
        lidar_augment=torch.eye(4).expand(size, 4, 4),
        global_from_lidar=torch.eye(4).expand(size, 4, 4),
        boxes=[torch.zeros(0, 9)] * size,
        labels=[torch.zeros(0, dtype=torch.long)] * size,
    )


def test_a_static_thing_stays_in_its_cell_whatever_frame_shows_it():
    """A post 6 m ahead, 1 m left: each frame's own forward camera sees it elsewhere, all put it into the same cell."""
    post = torch.tensor([-1.0, 6.0, 0.0])
    whole = batch(size=1, points=False)
    net = view(
        depth_net="plain", in_channels=1, channels=1, depth=(1.0, 13.0, 0.1), bounds=(-12.6, -12.6, -5, 12.6, 12.6, 3)
    )
    pixels = set()
    for index in range(FRAMES):
        frame = frame_of(whole, index, FRAMES)
        earlier = (motion(index) @ torch.cat([post, torch.ones(1)]))[:3]  # where it was from the earlier LiDAR
        camera = FORWARD[:3, :3] @ earlier + FORWARD[:3, 3]
        u, v = (40 * camera[:2] / camera[2] + torch.tensor([32.0, 16.0])).tolist()
        row, column = round(v / 31 * 7), round(u / 63 * 15)
        pixels.add((row, column, round(float(camera[2]), 1)))
        features = torch.zeros(1, CAMERAS, 1, 8, 16)
        features[0, 0, 0, row, column] = 1.0
        with torch.no_grad():
            net.depth_net.weight.zero_()
            net.depth_net.weight[-1] = 1.0
            net.depth_net.bias.zero_()
            net.depth_net.bias[round((float(camera[2]) - 1) / 0.1)] = 90.0
            bev = net([features], frame)[0, 0]
        assert (bev > 0.5).nonzero().tolist() == [[int((6 + 12.6) / CELL), int((-1 + 12.6) / CELL)]], index
    assert len(pixels) == FRAMES, "the frames saw it differently"


def test_channels_hold_the_current_frame_then_the_past_ones():
    whole, net = batch(), branch().eval()
    bev, auxiliary = net(whole)
    assert bev.shape == (2, FRAMES * 4, 20, 20)
    assert net.out_channels == FRAMES * 4
    assert auxiliary == {}
    cameras = net.view.camera_numbers(frame_of(whole, 0, FRAMES))
    for index in range(FRAMES):
        frame = frame_of(whole, index, FRAMES)
        assert torch.equal(frame.images, whole.images[:, 2 * index : 2 * index + 2])
        alone = net.pre_process(net.view(net.encoder(frame.images), frame, cameras=cameras))[-1]
        torch.testing.assert_close(bev[:, 4 * index : 4 * index + 4], alone)


def test_the_depth_net_is_told_the_current_cameras_for_every_frame():
    net = branch().train()
    seen = []
    net.view.depth_net.camera_norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(batch())
    assert len(seen) == FRAMES
    assert all(torch.equal(cameras, seen[0]) for cameras in seen)


def test_the_past_gives_no_gradients():
    whole, net = batch(), branch().train()
    whole.images.requires_grad_()
    bev, auxiliary = net(whole)
    loss = bev.square().mean() + depth_loss(net, auxiliary, whole)
    loss.backward()
    assert whole.images.grad[:, :CAMERAS].abs().sum() > 0
    assert whole.images.grad[:, CAMERAS:].abs().sum() == 0
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_the_past_is_zero_before_its_epoch():
    whole, net = batch(), branch(start_epoch=2).eval()
    always = net(whole)[0]
    assert all(always[:, 4 * f : 4 * f + 4].abs().sum() > 0 for f in range(FRAMES)), "prediction always has its history"
    for epoch in (0, 1):
        net.begin_epoch(epoch)
        bev = net(whole)[0]
        assert torch.equal(bev[:, :4], always[:, :4])
        assert bev[:, 4:].abs().sum() == 0
    net.begin_epoch(2)
    assert torch.equal(net(whole)[0], always)


def test_samples_do_not_depend_on_order_or_company():
    whole, net = batch(size=3), branch().eval()

    def part(rows: list[int]) -> Batch:
        names = ("images", "intrinsics", "camera_from_lidar", "image_augment", "lidar_augment", "global_from_lidar")
        lists = {name: [getattr(whole, name)[r] for r in rows] for name in ("token", "points", "boxes", "labels")}
        return replace(whole, **lists, **{name: getattr(whole, name)[rows] for name in names})

    together = net(whole)[0]
    for row in (2, 0, 1):
        torch.testing.assert_close(net(part([row]))[0][0], together[row], rtol=1e-5, atol=1e-6)


def test_depth_is_taught_in_the_current_frame_alone():
    whole, net = batch(), branch().train()
    current = frame_of(whole, 0, FRAMES)
    _, auxiliary = net(whole)
    assert auxiliary["depth"].shape == (2, CAMERAS, 12, 4, 8)
    assert net.learns_depth
    assert (
        float(net.targets(whole).counts["cells"])
        == int((lss.depth_targets(current, 8, (1.0, 13.0, 1.0)) >= 0).sum())
        > 0
    )
    torch.testing.assert_close(depth_loss(net, auxiliary, whole), depth_loss(net.view, auxiliary, current))


def test_needs_no_points_at_test():
    assert bool(branch().eval()(batch(points=False))[0].isfinite().all())


@pytest.mark.parametrize("depth_net", ["plain", "bevdepth"])
def test_weights_that_time_adds_at_the_papers_size(depth_net):
    """Nine frames of 80 channels are 720; the pre-processing net is two blocks: five 3x3 convolutions, a bias, four norms."""
    net = TemporalCameraBranch(
        encoder=Encoder(), view=view(depth_net=depth_net, channels=80), frames=9, channels=80, start_epoch=2
    )
    assert net.out_channels == 720
    assert sum(p.numel() for p in net.pre_process.parameters()) == 5 * 9 * 80 * 80 + 80 + 4 * 2 * 80
    assert net.learns_depth == (depth_net == "bevdepth")
