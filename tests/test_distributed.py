"""Two processes, each on half of the windows, end with the statistics of one."""

import pytest
import tiny
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from symprune.pruning.calibrate import gather

USES = {"input_norm", "output_norm", "gram", "sketch8"}
FEW = tiny.windows(2, seq_len=1)  # each reaches two of four experts in every decoder layer


def rank(index: int, rendezvous: str, folder: str) -> None:
    from symprune.pruning import distributed

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=index, world_size=2)
    torch.save(distributed.gather(tiny.model(), tiny.windows(5), USES), f"{folder}/{index}.pt")
    torch.save(distributed.gather(tiny.model("mixtral"), FEW, USES), f"{folder}/mixtral {index}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    (
        tiny.model(),
        tiny.model("mixtral"),
    )  # what it imports is there when the ranks are forked: fresh processes would import it again
    mp.start_processes(rank, (f"file://{folder}/rendezvous", str(folder)), nprocs=2, start_method="fork")
    return folder


@pytest.fixture(scope="module")
def of_ranks(folder) -> list[dict]:
    return [torch.load(folder / f"{index}.pt", weights_only=False) for index in range(2)]


def test_every_rank_ends_with_the_statistics_of_one_process(of_ranks):
    alone = gather(tiny.model(), tiny.windows(5), USES)
    for found in of_ranks:
        assert found.keys() == alone.keys()
        for name, stats in alone.items():
            assert (found[name].n_tokens, found[name].n_samples) == (60, 5)
            for field in (
                "input_norm",
                "input_mean",
                "input_var",
                "input_var_within",
                "output_norm",
                "sketch",
            ):
                assert torch.equal(getattr(found[name], field), getattr(stats, field)), (name, field)
            torch.testing.assert_close(found[name].gram, stats.gram, rtol=2**-22, atol=1e-12)


def test_linears_share_their_gram_matrix_after_the_ranks_have_met(of_ranks):
    assert len({stats.gram.data_ptr() for stats in of_ranks[0].values()}) == 3 * 4


def test_experts_that_only_one_rank_reached_are_those_of_one_process_too(folder):
    model = tiny.model("mixtral")
    whole, halves = gather(model, FEW, USES), [gather(model, window, USES) for window in FEW.split(1)]
    reached = [{name for name, stats in half.items() if stats.n_tokens} for half in halves]
    assert reached[0] - reached[1]
    assert reached[1] - reached[0]
    for index in range(2):
        found = torch.load(folder / f"mixtral {index}.pt", weights_only=False)
        for name, stats in whole.items():
            assert found[name].n_tokens == stats.n_tokens
            for field in ("input_norm", "input_mean", "input_var", "output_norm", "sketch"):
                here, there = getattr(found[name], field), getattr(stats, field)
                assert (here is None) == (there is None)
                assert here is None or (here.dtype == there.dtype and torch.equal(here, there)), (name, field)
            torch.testing.assert_close(found[name].gram, stats.gram, rtol=2**-22, atol=1e-12)
