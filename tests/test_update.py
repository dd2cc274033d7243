"""What happens to the weights that stay, against least squares, Kronecker products and loops."""

import copy
import math
import sys
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from symprune import NM, RIA, DSnoT, Magnitude, Recipe, Unstructured, UserError, Wanda, prune
from symprune.base import paths
from symprune.cli import main
from symprune.cli.parser import build_parser
from symprune.methods.refine.exact_swap import ExactSwap
from symprune.methods.stats import LayerStats, StatsAccumulator
from symprune.methods.update import CHOICES, UPDATES, Refit, Sequential, SparseGPT, SymmetricRefit
from symprune.models.layers import named_linears, weight_view
from symprune.models.load import load_model
from symprune.pruning import stats_files
from symprune.pruning.calibrate import accumulate, gather
from symprune.pruning.mask_files import apply_masks, load_masks, save_masks, verify_masks
from symprune.pruning.sources import WindowsBeside
from symprune.pruning.stats_files import Calibration
from symprune.pruning.stream import StreamedRun, Streaming, prune_checkpoint

F64 = torch.float64
PATTERNS = [Unstructured(0.6), Unstructured(0.6, "layer"), NM(2, 4), NM(3, 8)]
EXACTLY = {"max_iterations": 400, "tolerance": 1e-13}
patterns = pytest.mark.parametrize("pattern", PATTERNS, ids=str)


def case(
    d_out: int = 10, d_in: int = 24, tokens: int = 100, seed: int = 0, dtype: torch.dtype = F64
) -> tuple[torch.Tensor, LayerStats]:
    """A weight, and statistics of correlated inputs and gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=F64, generator=generator)

    acc = StatsAccumulator(d_in, d_out, gram=True)
    acc.update((normal(tokens, d_in) + 0.3) @ normal(d_in, d_in) * (1 + torch.arange(d_in)))
    gradients = normal(50, d_out) @ normal(d_out, d_out)
    stats = replace(acc.finish(), gradient_gram=1e-9 * gradients.t() @ gradients)
    return normal(d_out, d_in).to(dtype), stats.to(dtype if dtype == F64 else torch.float32)


def unit(gram: torch.Tensor) -> torch.Tensor:
    return gram / gram.diagonal().mean()


def whole_matrix(update: SymmetricRefit, stats: LayerStats) -> torch.Tensor:
    """c H (x) G + s I (x) G + t H (x) I + m I (x) I, written out."""
    G, H = unit(stats.gram.double()), unit(stats.gradient_gram.double())
    left, right = torch.eye(len(H), dtype=F64), torch.eye(len(G), dtype=F64)
    return (
        update.product * torch.kron(H, G)
        + update.inputs * torch.kron(left, G)
        + update.outputs * torch.kron(H, right)
        + update.identity * torch.kron(left, right)
    )


def least(A: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The weight on the mask that is closest to `weight` in A, by elimination (Cholesky)."""
    w, kept = weight.flatten(), mask.flatten()
    found = torch.zeros_like(w)
    right = (A[kept][:, ~kept] @ w[~kept])[:, None]
    found[kept] = w[kept] + torch.cholesky_solve(right, torch.linalg.cholesky(A[kept][:, kept]))[:, 0]
    return found.view(weight.shape)


@patterns
@pytest.mark.parametrize("damping", [0.0, 0.01, 1.0])
def test_refit_is_least_squares_of_every_row(pattern, damping):
    weight, stats = case()
    mask = pattern(Wanda()(weight, stats))
    A = unit(stats.gram) + damping * torch.eye(24, dtype=F64)
    expected = torch.cat([least(A, *(x[None] for x in row)) for row in zip(weight, mask, strict=True)])
    torch.testing.assert_close(Refit(damping, **EXACTLY)(weight, mask, stats), expected, rtol=1e-6, atol=1e-8)


@patterns
@pytest.mark.parametrize("coefficients", [(1, 0.1, 0.01, 0.001), (0, 1, 1, 0.1), (1, 0, 0, 0.01)], ids=str)
def test_the_symmetric_refit_solves_the_kronecker_problem(pattern, coefficients):
    weight, stats = case(d_out=6, d_in=16)
    mask, update = pattern(Wanda()(weight, stats)), SymmetricRefit(*coefficients, **EXACTLY)
    expected = least(whole_matrix(update, stats), weight, mask)
    torch.testing.assert_close(update(weight, mask, stats), expected, rtol=1e-6, atol=1e-7)


def test_without_the_gradients_the_symmetric_refit_is_the_refit_and_a_diagonal_of_them_only_scales_rows():
    weight, stats = case()
    mask = Unstructured(0.6)(weight.abs())
    expected = Refit(0.03, **EXACTLY)(weight, mask, stats)
    one_sided = SymmetricRefit(0, 2, 0, 0.06, **EXACTLY)
    torch.testing.assert_close(one_sided(weight, mask, replace(stats, gradient_gram=None)), expected)
    diagonal = replace(stats, gradient_gram=stats.gradient_gram.diagonal().diag())
    scaled = SymmetricRefit(1, 0, 0.03, 0, **EXACTLY)(weight, mask, diagonal)
    torch.testing.assert_close(scaled, expected, rtol=1e-6, atol=1e-8)
    whole = SymmetricRefit(1, 0, 0.03, 0, **EXACTLY)(weight, mask, stats)
    assert (whole - expected).abs().max() > 0.01


def objective(update: Refit | SymmetricRefit, weight, changed, stats: LayerStats) -> torch.Tensor:
    """Of every row, or of all where rows are not by themselves, in float64."""
    change = changed.double() - weight.double()
    if isinstance(update, SymmetricRefit):
        return change.flatten() @ whole_matrix(update, stats) @ change.flatten()
    more = max(1, weight.shape[1] / stats.n_tokens)
    A = unit(stats.gram.double()) + update.damping * more * torch.eye(weight.shape[1], dtype=F64)
    return ((change @ A) * change).sum(dim=1)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(1, 60),
    iterations=st.integers(0, 40),
    dtype=st.sampled_from([F64, torch.float32, torch.bfloat16]),
    pattern=st.sampled_from(PATTERNS),
    both=st.booleans(),
)
def test_no_refit_raises_its_own_objective_and_what_is_removed_stays_zero(
    seed, tokens, iterations, dtype, pattern, both
):
    weight, stats = case(5, 16, tokens, seed, dtype)
    mask = pattern(weight.float().abs())
    few = min(16 / tokens, 16)
    update = Refit(max_iterations=iterations)
    if both:
        update = SymmetricRefit(max_iterations=iterations)
    refit = update.run(weight, mask, stats)
    assert refit.weight.dtype == dtype
    assert not refit.weight[~mask].any()
    if both:  # what is damping for the inputs grows with the lack of tokens
        update = replace(update, outputs=max(1, few) * update.outputs, identity=max(1, few) * update.identity)
    before = objective(update, weight, weight * mask, stats)
    after = objective(update, weight, refit.weight, stats)
    rounding = 1e-9 if dtype == F64 else 1e-5
    assert (after <= before * (1 + rounding)).all()
    assert 0 <= refit.error_after <= refit.error_before <= 1 + 16
    assert refit.iterations <= iterations
    if not iterations:
        assert torch.equal(refit.weight, torch.where(mask, weight, 0))


@pytest.mark.parametrize("update", [cls() for cls in UPDATES.values()], ids=list(UPDATES))
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16], ids=str)
def test_where_nothing_is_removed_no_bit_changes(update, dtype):
    weight, stats = case(dtype=dtype)
    weight[0, :5] = -0.0
    mask = torch.ones(10, 24, dtype=torch.bool)
    as_bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[weight.element_size()]
    assert torch.equal(update(weight, mask, stats).view(as_bits), weight.view(as_bits))
    mask[3, 4:9] = False
    before, changed = weight.clone(), update(weight, mask, stats)
    assert torch.equal(weight.view(as_bits), before.view(as_bits))
    assert not torch.equal(changed[3], weight[3] * mask[3])
    if not isinstance(update, SymmetricRefit):  # which makes one row good by others
        others = torch.arange(10) != 3
        assert torch.equal(changed[others].view(as_bits), weight[others].view(as_bits))


def test_thirty_iterations_in_float32_come_close_to_the_least():
    weight, stats = case(40, 64, 400, dtype=torch.float32)
    mask = Unstructured(0.6)(Wanda()(weight, stats))
    found = Refit(0.01).run(weight, mask, stats)
    exact = Refit(0.01, **EXACTLY).run(weight.double(), mask, stats)
    assert exact.error_after < 0.9 * exact.error_before
    assert found.error_after < exact.error_after + 0.02 * (exact.error_before - exact.error_after)


def obs_loop(weight: torch.Tensor, mask: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """Every removal in turn, made good by the columns after it: the definition."""
    weight = weight.clone()
    for row, kept in zip(weight, mask, strict=True):
        for j in range(len(row)):
            if not kept[j]:
                inverse = torch.linalg.inv(A[j:, j:])
                row[j:] -= row[j] / inverse[0, 0] * inverse[0]
                row[j] = 0
    return weight


@patterns
@pytest.mark.parametrize("block", [1, 5, 24, 128])
def test_the_sequential_update_is_its_definition_in_blocks_of_any_size(pattern, block):
    weight, stats = case()
    mask = pattern(Wanda()(weight, stats))
    A = unit(stats.gram) + 0.01 * torch.eye(24, dtype=F64)
    found = Sequential(block=block)(weight, mask, stats)
    torch.testing.assert_close(found, obs_loop(weight, mask, A), rtol=1e-6, atol=1e-8)
    assert not found[~mask].any()


def sparsegpt_loop(weight, A, pattern, block) -> torch.Tensor:
    """SparseGPT by definition: the mask of a stretch of columns chosen at its first, columns one by one."""
    weight, (d_out, d_in) = weight.clone(), weight.shape
    mask = torch.ones(d_out, d_in, dtype=torch.bool)
    stretch = pattern.m if isinstance(pattern, NM) else block
    for start in range(0, d_in, stretch):
        end = min(start + stretch, d_in)
        # the cost of removing column j once those before it are settled
        cost = torch.stack(
            [weight[:, j] ** 2 / torch.linalg.inv(A[j:, j:])[0, 0] for j in range(start, end)], dim=1
        )
        if isinstance(pattern, NM):
            groups, quota = list(cost), pattern.m - pattern.n
        elif pattern.group == "output":
            total = math.floor(pattern.sparsity * d_in)
            groups, quota = list(cost), total * end // d_in - total * start // d_in
        else:
            total = math.floor(pattern.sparsity * d_in * d_out)
            groups, quota = [cost.flatten()], total * end // d_in - total * start // d_in
        chosen = []
        for group in groups:
            order = sorted(range(len(group)), key=lambda k, group=group: float(group[k]))
            chosen.append([k not in order[:quota] for k in range(len(group))])
        mask[:, start:end] = torch.tensor(chosen).view(d_out, end - start)
        for j in range(start, end):
            inverse = torch.linalg.inv(A[j:, j:])
            weight[:, j:] -= torch.outer(weight[:, j] * ~mask[:, j] / inverse[0, 0], inverse[0])
    return mask


@patterns
@pytest.mark.parametrize("block", [5, 8, 128])
def test_the_mask_of_sparsegpt_is_its_definition_and_keeps_as_many_as_the_pattern_says(pattern, block):
    weight, stats = case()
    A = unit(stats.gram) + 0.01 * torch.eye(24, dtype=F64)
    mask = SparseGPT(block=block).choose(weight, stats, pattern)
    assert torch.equal(mask, sparsegpt_loop(weight, A, pattern, block))
    if isinstance(pattern, NM):
        assert (mask.view(-1, pattern.m).sum(1) == pattern.n).all()
    elif pattern.group == "output":
        assert (mask.sum(1) == 24 - math.floor(0.6 * 24)).all()
    else:
        assert int(mask.sum()) == 240 - math.floor(0.6 * 240)


def test_sparsegpt_without_inputs_is_magnitude_and_without_rank_it_says_so():
    weight, stats = case()
    silent = replace(stats, gram=torch.zeros(24, 24, dtype=F64))
    assert torch.equal(SparseGPT().choose(weight, silent, NM()), NM()(weight.abs()))
    _, few = case(tokens=3)
    with pytest.raises(UserError, match="cannot be inverted with damping 0"):
        SparseGPT(damping=0.0).choose(weight, few, NM())


@pytest.mark.parametrize(
    ("update", "words"),
    [
        (lambda: Refit(damping=-1.0), "damping"),
        (lambda: Refit(max_iterations=-1), "max_iterations"),
        (lambda: SymmetricRefit(product=math.inf), "product"),
        (lambda: SymmetricRefit(tolerance=math.nan), "tolerance"),
        (lambda: Sequential(block=0), "block"),
        (lambda: SparseGPT(damping=-0.1), "damping"),
    ],
)
def test_a_bad_hyperparameter_is_named(update, words):
    with pytest.raises(UserError, match=words):
        update()


@pytest.mark.parametrize("update", [cls() for cls in UPDATES.values()], ids=list(UPDATES))
def test_statistics_without_a_matrix_are_refused(update):
    weight, stats = case()
    mask = NM()(weight.abs())
    for field in update.uses:
        with pytest.raises(UserError, match="Gram matrix of the"):
            update(weight, mask, replace(stats, **{field: None}))


# In the pipeline.

HALF = Unstructured(0.5)
RECIPES = [
    Recipe(RIA(), NM(2, 4), ExactSwap(), Refit()),
    Recipe(Magnitude(), HALF, DSnoT(), SymmetricRefit(max_iterations=5)),
    Recipe(SparseGPT(), HALF, update=Sequential()),
    Recipe(SparseGPT(), NM(2, 4), ExactSwap(), SymmetricRefit(max_iterations=5)),
]


def same(model, other) -> bool:
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
def test_refit_weights_are_what_the_next_layer_receives(propagate):
    """Layer by layer with whole forwards: gradients of the dense model, inputs of the model as it is."""
    model, windows, update = tiny.model(), tiny.windows(), SymmetricRefit(max_iterations=5)
    by_hand = copy.deepcopy(model)
    recipe = Recipe(Wanda(), HALF, update=update)
    dense = gather(model, windows, {"gram", "gradient_gram"})
    report = prune(model, windows, recipe, propagate, keep_masks=True)
    for index in range(3):
        now = dense if propagate == "dense" else gather(by_hand, windows, {"gram"})
        for name, linear in named_linears(by_hand).items():
            if f".{index}." in name:
                stats = replace(now[name], gradient_gram=dense[name].gradient_gram)
                mask = HALF(Wanda()(weight_view(linear), stats))
                weight_view(linear).copy_(update(weight_view(linear), mask, stats))
    for name, linear in named_linears(model).items():
        torch.testing.assert_close(linear.weight, named_linears(by_hand)[name].weight, rtol=1e-3, atol=1e-4)
        assert not weight_view(linear)[~report.masks[name]].any()
    for linear in report.linears:
        assert linear.updated["error_after"] < linear.updated["error_before"]
    assert "update_error_after" in report.frame()


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("recipe", RECIPES[:2], ids=lambda recipe: recipe.label)
@pytest.mark.parametrize("killed_at", [9])
def test_a_run_that_ended_anywhere_continues_to_the_same_weights(tmp_path, monkeypatch, recipe, killed_at):
    model, windows = tiny.model(), tiny.windows(3)
    whole, killed = copy.deepcopy(model), copy.deepcopy(model)
    expected = prune(whole, windows, recipe)
    run, calls = type(recipe.update).run, []

    def until_killed(*args):
        calls.append(1)
        if len(calls) > killed_at:
            raise Killed
        return run(*args)

    monkeypatch.setattr(type(recipe.update), "run", until_killed)
    with pytest.raises(Killed):
        prune(killed, windows, recipe, work=tmp_path / "work")
    monkeypatch.setattr(type(recipe.update), "run", run)
    kept = tmp_path / "work/weights_000.safetensors"
    assert kept.exists() == (killed_at >= 7)
    report = prune(copy.deepcopy(model), windows, recipe, work=tmp_path / "work")
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")  # damaged: made again
    again = copy.deepcopy(model)
    assert prune(again, windows, recipe, work=tmp_path / "work").linears == report.linears == expected.linears
    assert same(again, whole)


@pytest.mark.parametrize(
    ("family", "recipe"), list(zip(["llama", "gpt2", "mixtral", "llama"], RECIPES, strict=True)), ids=str
)
def test_streamed_it_has_the_bits_of_the_run_in_memory(tmp_path, recipe, family):
    tiny.model(family).save_pretrained(tmp_path / "dense", max_shard_size="20kB")
    name, windows = str(tmp_path / "dense"), tiny.windows(3)
    model = load_model(name)
    given = windows
    if "gradient_gram" in recipe.uses:
        with pytest.raises(UserError, match=r"--gather gradient_gram.*--update refit"):
            StreamedRun(name, windows, recipe)
        given = WindowsBeside(windows, gather(model, windows, {"gradient_gram"}))
    expected = prune(model, windows, recipe)
    streamed = StreamedRun(name, given, recipe, how=Streaming(keep_masks=True))
    with streamed.into(tmp_path / "out") as (_, found):
        assert found.linears == expected.linears
    assert same(load_model(str(tmp_path / "out")), model)
    streamed.masks.save(tmp_path / "masks")
    verify_masks(load_masks(tmp_path / "masks"), model)
    if family == "llama":
        statistics = gather(load_model(name), windows, recipe.uses)
        dense = load_model(name)
        prune(dense, statistics, recipe, "dense")
        prune_checkpoint(name, tmp_path / "dense out", statistics, recipe, "dense")
        assert same(load_model(str(tmp_path / "dense out")), dense)


def test_gradients_that_were_not_gathered_are_named():
    model, windows = tiny.model(), tiny.windows(2)
    recipe, without = Recipe(Wanda(), HALF, update=SymmetricRefit()), gather(model, windows, {"gram"})
    with pytest.raises(UserError, match=r"no gradients of model\.layers\.0\.self_attn\.q_proj"):
        prune(model, WindowsBeside(windows, without), recipe)


@pytest.mark.parametrize("update", [cls() for cls in UPDATES.values()], ids=list(UPDATES))
def test_experts_that_few_tokens_reached_are_damped_and_told_and_those_that_none_reached_are_left(update):
    model, window = tiny.model("mixtral"), tiny.windows(1, seq_len=2)
    dense = copy.deepcopy(model)
    report = prune(model, window, Recipe(Wanda(), HALF, update=update), keep_masks=True)
    assert report.unreached
    assert "updated on fewer tokens than inputs, with more damping" in repr(report)
    for linear in report.linears:
        assert (linear.updated is None) == (linear.n_tokens == 0)
        assert (linear.name in report.hardly_reached) == (linear.n_tokens > 0)
        if linear.n_tokens == 0:
            before, after = (weight_view(named_linears(m)[linear.name]) for m in (dense, model))
            assert torch.equal(after, before * report.masks[linear.name])
        else:
            assert linear.updated["error_after"] <= linear.updated["error_before"] * 1.5


def test_fewer_tokens_than_inputs_damp_more():
    weight, stats = case(tokens=6)
    mask = HALF(weight.abs())
    torch.testing.assert_close(
        Refit(0.01)(weight, mask, stats), Refit(0.04)(weight, mask, replace(stats, n_tokens=24))
    )


def test_masks_of_a_refit_model_do_not_make_it_and_say_so(tmp_path):
    from symprune.base.records import Record

    model, windows, recipe = tiny.model(), tiny.windows(2), Recipe(Wanda(), HALF, update=Refit())
    dense = copy.deepcopy(model)
    report = prune(model, windows, recipe, keep_masks=True)
    save_masks(tmp_path / "m", report.masks, model, Record({"recipe": recipe.to_dict()}, {}, {}))
    found = load_masks(tmp_path / "m")
    assert found.updated == "refit"
    verify_masks(found, model)
    assert not apply_masks(copy.deepcopy(model), found)
    with pytest.raises(
        UserError, match=r"kept weights were updated \(refit\), which masks alone do not make"
    ):
        apply_masks(dense, found)
    assert len(apply_masks(dense, found, other_weights=True)) == len(report.masks)


# The gradients.


def test_gradient_gram_is_of_the_loss_gradients_of_the_outputs():
    model, windows = tiny.model(), tiny.windows(2, seq_len=8)
    name, linear = list(named_linears(model).items())[4]
    expected = torch.zeros((len(linear.weight),) * 2, dtype=F64)
    for window in windows:
        shift = torch.zeros(1, 8, len(linear.weight), requires_grad=True)
        handle = linear.register_forward_hook(lambda _, __, out, shift=shift: out + shift)
        model(input_ids=window[None], labels=window[None]).loss.backward()
        handle.remove()
        for gradient in shift.grad[0].double():
            expected += torch.outer(gradient, gradient)
    uses = {"gradient_gram", "gram", "output_norm"}
    stats, plain = gather(model, windows, uses), gather(model, windows, uses - {"gradient_gram"})
    torch.testing.assert_close(stats[name].gradient_gram.double(), expected, rtol=1e-3, atol=1e-10)
    torch.testing.assert_close(stats[name].gram, plain[name].gram)
    torch.testing.assert_close(stats[name].output_norm, plain[name].output_norm)  # of the outputs, as asked
    assert plain[name].gradient_gram is None
    model.lm_head.weight.data *= 1e25
    with pytest.raises(UserError, match="NaN or inf in the gradients"):
        gather(model, windows, uses)


def test_gradients_add_up_over_shards_and_come_back_from_files(tmp_path):
    model, windows, uses = tiny.model("mixtral"), tiny.windows(4), frozenset({"gradient_gram"})
    asked = stats_files.asked("w", uses, dtype="float32", device="cpu", seq_len=12)
    for index, part in enumerate(windows.split(2)):
        stats_files.save(
            tmp_path / str(index),
            Calibration(accumulate(model, part, uses), asked, [{"windows": str(index)}]),
        )
    merged = stats_files.merge([stats_files.load(tmp_path / str(index)) for index in (1, 0)]).statistics
    for name, stats in gather(model, windows, uses).items():
        torch.testing.assert_close(merged[name].gradient_gram, stats.gradient_gram, rtol=1e-6, atol=1e-12)


def test_the_command_line_names_every_update_and_choice(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["prune", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*UPDATES, *CHOICES))


def test_what_an_update_did_stands_on_record_and_in_rows():
    from symprune.base.records import Record
    from symprune.measure.record_rows import name_columns

    record = Record({"model": {"name": "m"}}, {}, {})
    columns = name_columns(record, Recipe("wanda", "0.6", update="refit(damping=0.1)"))
    assert columns["update"] == "refit(damping=0.1)"
    assert "update" not in name_columns(record, Recipe("wanda", "0.6"))


def test_the_command_line_refits_streams_with_gradients_from_a_file_and_says_what_masks_lack(
    checkpoint, corpus, tmp_path, capsys
):
    def run(*argv: object) -> tuple[int, str]:
        return main([str(word) for word in argv]), capsys.readouterr().err

    text = ["--corpus", corpus, "--n-calib", 3, "--seq-len", 32]
    how = [checkpoint, *text, "--score", "wanda", "--update", "symmetric_refit(max_iterations=3)"]
    gradients = ["--statistics", tmp_path / "h", "--propagate", "pruned"]
    assert run("calibrate", checkpoint, *text, "--gather", "gradient_gram", "--out", tmp_path / "h")[0] == 0
    assert run("prune", *how, "--out", tmp_path / "memory")[0] == 0
    assert run("prune", *how, *gradients, "--stream", "--out", tmp_path / "stream")[0] == 0
    memory, stream = (load_model(str(tmp_path / name)) for name in ("memory", "stream"))
    assert same(memory, stream)
    code, said = run("prune", *how, "--stream", "--out", tmp_path / "none")
    assert code == 2
    assert "--gather gradient_gram" in said
    code, said = run("prune", *how, "--masks", tmp_path / "none")
    assert code == 2
    assert "changes weights, which a mask file does not hold: give --out DIR" in said
    code, said = run("apply", checkpoint, tmp_path / "memory", "--out", tmp_path / "none")
    assert code == 2
    assert "which masks alone do not make" in said
    code, said = run(
        "prune", checkpoint, "--update", "refit", "--statistics", tmp_path / "h", "--out", "none"
    )
    assert code == 2
    assert "reads gram, which" in said


def test_the_page_on_updates_shows_what_was_measured():
    sys.path.insert(0, str(paths.ROOT / "benchmarks"))
    import updates

    page = (paths.ROOT / "docs/updates.md").read_text()
    for file in sorted((paths.ROOT / "results/updates").glob("*.jsonl")):
        assert updates.tables(file) in page, file
    assert all(name in page for name in (*UPDATES, *CHOICES))


@given(st.integers(0, 99), st.sampled_from([10, 30]), st.sampled_from([Refit, SymmetricRefit]))
@settings(deadline=None, max_examples=30)
def test_a_last_bit_of_the_statistics_decides_nothing_of_a_refit(seed, iterations, kind):
    """Few tokens and inputs of very different size: the same tokens added up in another order."""
    weight, stats = case(8, 64, 40, seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 64, dtype=F64, generator=generator) * torch.logspace(0, 3, 64, dtype=F64)
    mask = torch.rand(8, 64, generator=generator) < 0.4
    update = kind(max_iterations=iterations, tolerance=0.0)
    grams = [sum(torch.outer(row, row) for row in rows) for rows in (x, x.flip(0))]
    assert not torch.equal(*grams)
    one, other = (update(weight, mask, replace(stats, gram=gram)) for gram in grams)
    assert ((one - other).norm(dim=1) <= 1e-12 * one.norm(dim=1)).all()


@pytest.mark.parametrize("held", [0, 1, 7])
@pytest.mark.parametrize("kind", [Refit, SymmetricRefit])
def test_with_few_residuals_held_a_refit_is_the_same_least_squares(kind, held, monkeypatch):
    weight, stats = case()
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    update = kind(**EXACTLY)
    expected = update(weight, mask, stats)
    monkeypatch.setattr("symprune.methods.update.refit._REMEMBERED", held * weight.numel())
    assert torch.allclose(update(weight, mask, stats), expected, rtol=1e-8, atol=1e-10)
