"""Two processes, each on half of the windows, end with the statistics of one."""

import pytest
import tiny
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from symprune.pruning.calibrate import gather

USES = {"input_norm", "output_norm", "gram"}


def rank(index: int, rendezvous: str, folder: str) -> None:
    from symprune.pruning import distributed

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=index, world_size=2)
    torch.save(distributed.gather(tiny.model(), tiny.windows(5), USES), f"{folder}/{index}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    tiny.model()  # what it imports is there when the ranks are forked: fresh processes would import it again
    mp.start_processes(rank, (f"file://{folder}/rendezvous", str(folder)), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{index}.pt", weights_only=False) for index in range(2)]


def test_every_rank_ends_with_the_statistics_of_one_process(of_ranks):
    alone = gather(tiny.model(), tiny.windows(5), USES)
    for found in of_ranks:
        assert found.keys() == alone.keys()
        for name, stats in alone.items():
            assert (found[name].n_tokens, found[name].n_samples) == (60, 5)
            for field in ("input_norm", "input_mean", "input_var", "input_var_within", "output_norm"):
                assert torch.equal(getattr(found[name], field), getattr(stats, field)), (name, field)
            torch.testing.assert_close(found[name].gram, stats.gram, rtol=2**-22, atol=1e-12)


def test_linears_share_their_gram_matrix_after_the_ranks_have_met(of_ranks):
    assert len({stats.gram.data_ptr() for stats in of_ranks[0].values()}) == 3 * 4
