"""One process alone, in this process; two processes, in this file run as a script."""

import os
import sys
import warnings
from datetime import timedelta

import pytest
import torch

from core import distributed


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_one_process_is_a_world_of_one_without_a_group(alone):
    world = distributed.start("cpu")
    assert world == distributed.World(0, 1, 0, torch.device("cpu"))
    assert not torch.distributed.is_initialized()
    assert (distributed.rank(), distributed.size(), distributed.is_main()) == (0, 1, True)
    distributed.barrier()
    distributed.stop()


def test_alone_every_exchange_is_the_identity(alone):
    x = torch.randn(3, 2, requires_grad=True)
    assert torch.equal(distributed.all_sum(x), x)
    assert torch.equal(distributed.all_mean(x), x)
    assert distributed.gather_with_grad(x) is x
    assert distributed.broadcast_object({"a": 1}) == {"a": 1}
    assert distributed.gather_objects("a") == ["a"]


def test_the_sum_is_a_new_tensor_without_gradient(alone):
    x = torch.ones(2, requires_grad=True)
    total = distributed.all_sum(x)
    assert not total.requires_grad
    total += 1
    assert x.tolist() == [1, 1]


def test_half_an_environment_says_what_is_missing(alone):
    alone.setenv("WORLD_SIZE", "2")
    alone.setenv("RANK", "0")
    with pytest.raises(ValueError, match="MASTER_ADDR, MASTER_PORT is not set; start the processes with torchrun"):
        distributed.start("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_not_there_is_refused(alone):
    with pytest.raises(ValueError, match="use device 'cpu'"):
        distributed.start("cuda")


def test_two_processes_exchange_what_one_would_compute(run_processes):
    assert run_processes(__file__, 2, "exchange") == ["done\n"] * 2


def test_a_process_whose_partner_never_comes_says_so(run_processes):
    """Two are announced, one comes."""
    (said,) = run_processes(__file__, 1, "lonely")
    assert "process 0 of 2 could not meet the others at 127.0.0.1:" in said and "within 1 s" in said


def exchange() -> None:
    world = distributed.start("cpu", timeout=timedelta(seconds=60))
    assert world == distributed.World(world.rank, 2, world.rank, torch.device("cpu"))
    assert distributed.start("cpu") == world  # a second call finds the group
    assert distributed.is_main() == (world.rank == 0)

    rows = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))  # (process, row, column)
    weights = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))  # how each process uses all rows
    mine = rows[world.rank].clone().requires_grad_()
    transposed = mine.t().detach()  # not contiguous
    torch.testing.assert_close(distributed.all_sum(transposed), rows.sum(0).t())
    assert torch.equal(transposed, rows[world.rank].t())
    torch.testing.assert_close(distributed.all_mean(mine), rows.mean(0))
    assert distributed.all_sum(torch.tensor(world.rank + 1)) == 3

    # The reference is one process that has all rows and both losses.
    everything = rows.clone().requires_grad_()
    gathered = everything.flatten(0, 1)
    losses = [(gathered.square() * weight).sum() for weight in weights]
    sum(losses).backward()
    together = distributed.gather_with_grad(mine)
    assert torch.equal(together, rows.flatten(0, 1))
    loss = (together.square() * weights[world.rank]).sum()
    torch.testing.assert_close(loss, losses[world.rank])
    loss.backward()
    torch.testing.assert_close(mine.grad, everything.grad[world.rank])

    pair = torch.distributed.new_group([0, 1])
    alone = [torch.distributed.new_group([rank]) for rank in range(2)][world.rank]
    assert distributed.size(pair) == 2 and distributed.size(alone) == 1 and distributed.rank(alone) == 0
    torch.testing.assert_close(distributed.all_sum(mine, pair), rows.sum(0))
    assert torch.equal(distributed.all_sum(mine, alone), mine)
    assert distributed.gather_with_grad(mine, alone) is mine

    assert distributed.broadcast_object(f"from {world.rank}") == "from 0"
    assert distributed.gather_objects(world.rank) == [0, 1]
    distributed.barrier()
    distributed.stop()
    assert not torch.distributed.is_initialized()


def lonely() -> None:
    os.environ["WORLD_SIZE"] = "2"
    try:
        distributed.start("cpu", timeout=timedelta(seconds=1))
    except RuntimeError as error:
        print(error)


if __name__ == "__main__":
    warnings.simplefilter("error", FutureWarning)
    {"exchange": exchange, "lonely": lonely}[sys.argv[1]]()
    if sys.argv[1] == "exchange":
        print("done")
