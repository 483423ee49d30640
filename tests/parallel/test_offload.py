"""What stays in the memory of the host, and what goes to the device."""

from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torchmetrics import MeanMetric

from mhmoe_mm.parallel.sharding import Sharding, meshes_of, shard
from mhmoe_mm.parallel.strategy import FSDP2


class Net(nn.Module):
    """A bit of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("mean", torch.zeros(3))
        self.metric = MeanMetric()


@pytest.fixture
def two_ranks():
    """Of which this process is one; the other answers nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


def test_shards_stay_on_the_host_and_the_rest_goes_to_the_device(two_ranks):
    net = Net()
    shard(net, ("forward",), meshes_of(2, 1, 1, "cpu"), Sharding(offload=True))
    strategy = FSDP2(offload=True)
    strategy.model = net  # pyright: ignore[reportAttributeAccessIssue]
    with mock.patch.object(FSDP2, "root_device", torch.device("meta")):
        strategy.model_to_device()
    assert all(isinstance(p, DTensor) and p.device.type == "cpu" for p in net.layer.parameters())
    assert net.scale.device.type == net.mean.device.type == "meta"
    assert net.metric.mean_value.device.type == "meta"
