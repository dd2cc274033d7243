"""Recipes as plain data and as text, there and back, for every method there is."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symprune import NM, RI, RIA, DSnoT, LpNorm, Magnitude, Recipe, StochRIA, Unstructured, UserError, Wanda
from symprune.base.records import run_key
from symprune.methods.masks import PATTERNS
from symprune.methods.recipe import method_dict, method_label, parse_method, parse_pattern, pattern_label
from symprune.methods.refine import AS_PUBLISHED, REFINERS, ExactSwap
from symprune.methods.refine.refinement import later
from symprune.methods.scores import SCORES
from symprune.methods.update import CHOICES, UPDATES, Refit, SparseGPT, SymmetricRefit

# Values that each hyperparameter may take; a hyperparameter that is not here fails the test of its method.
VALUES = {
    "alpha": st.floats(0, 4),
    "p": st.floats(0.25, 8) | st.just(math.inf),
    "beta": st.floats(0.01, 1),
    "sampling": st.sampled_from(["independent", "shared"]),
    "seed": st.integers(0, 2**31),
    "squared": st.booleans(),
    "balance": st.sampled_from(["none", "unit-mean"]),
    "power": st.floats(0, 4),
    "variance": st.sampled_from(["within", "pooled"]),
    "threshold": st.floats(0, 1),
    "threshold_scale": st.sampled_from(["absolute", "initial"]),
    "max_cycles": st.integers(1, 100),
    "cycles_for_width": st.none() | st.integers(1, 10**5),
    "keep_sign": st.booleans(),
    "rank": st.integers(0, 10**4),
    "pair": st.sampled_from(["greedy", "best"]),
    "linears": st.sampled_from(["all", "attention", "mlp"]),
    "relative": st.sampled_from(["none", "grow", "prune", "both"]),
    "gamma_grow": st.floats(0, 1),
    "gamma_prune": st.floats(0, 1),
    "sparsity": st.floats(0, 0.999),
    "group": st.sampled_from(["output", "layer"]),
    "damping": st.floats(0, 1),
    "tolerance": st.floats(0, 1),
    "max_iterations": st.integers(0, 100),
    "block": st.integers(1, 256),
    **{name: st.floats(0, 2) for name in ("product", "inputs", "outputs", "identity")},
}


def methods(registry: dict) -> st.SearchStrategy:
    """Any method of a registry with any values of its hyperparameters."""

    def of(cls: type) -> st.SearchStrategy:
        if cls is NM:
            return st.integers(1, 8).flatmap(lambda m: st.builds(NM, st.integers(1, m), st.just(m)))
        return st.builds(cls, **{field.name: VALUES[field.name] for field in dataclasses.fields(cls)})

    return st.one_of([of(cls) for cls in registry.values()])


recipes = st.builds(
    Recipe,
    methods(SCORES | CHOICES),
    methods(PATTERNS),
    st.none() | methods(REFINERS),
    st.none() | methods(UPDATES),
    st.dictionaries(st.sampled_from(["mlp.*", "q_proj", "layers.0.*"]), st.none() | methods(PATTERNS)),
)


@given(recipes)
@settings(max_examples=200, deadline=None)
def test_a_recipe_is_read_back_from_its_plain_data(recipe):
    plain = json.loads(json.dumps(recipe.to_dict(), allow_nan=False))
    again = Recipe.from_dict(plain)
    assert again == recipe
    assert (again.key, again.label, again.uses) == (recipe.key, recipe.label, recipe.uses)
    assert len(run_key({"recipe": recipe.to_dict()})) == 16  # a record can be named by it


@given(methods(SCORES))
@settings(max_examples=100, deadline=None)
def test_a_score_is_read_back_from_its_label(score):
    assert parse_method("score", method_label(score), SCORES) == score


@given(methods(REFINERS))
@settings(max_examples=100, deadline=None)
def test_a_refiner_is_read_back_from_its_label(refiner):
    assert parse_method("refinement", method_label(refiner), REFINERS) == refiner


@given(methods(UPDATES))
@settings(max_examples=100, deadline=None)
def test_an_update_is_read_back_from_its_label(update):
    assert parse_method("update", method_label(update), UPDATES) == update


@pytest.mark.parametrize(
    ("kind", "registry"),
    [("score", SCORES), ("score", CHOICES), ("refinement", REFINERS), ("update", UPDATES)],
)
def test_every_name_alone_is_the_method_with_its_defaults(kind, registry):
    for name, cls in registry.items():
        assert parse_method(kind, name, registry) == cls()
        assert method_label(cls()) == name


@given(recipes, recipes)
@settings(max_examples=100, deadline=None)
def test_two_recipes_share_a_key_only_if_they_are_equal(a, b):
    assert (a.key == b.key) == (a == b)


def test_equal_recipes_share_key_and_label_whatever_the_type_of_a_number():
    for one, other in [(RIA(alpha=1), RIA(alpha=1.0)), (LpNorm(p=2), LpNorm(p=2.0))]:
        assert Recipe(one) == Recipe(other)
        assert (Recipe(one).key, Recipe(one).label) == (Recipe(other).key, Recipe(other).label)
    assert Recipe(RI(), Unstructured(0)).key == Recipe(RI(), Unstructured(0.0)).key
    assert Recipe(RI(), Unstructured(0)).label == Recipe(RI(), Unstructured(0.0)).label


def test_the_key_of_a_recipe_is_the_same_on_every_machine_and_in_every_version():
    assert Recipe(Magnitude(), NM(2, 4)).to_dict() == {
        "score": {"name": "magnitude"},
        "pattern": {"name": "nm", "n": 2, "m": 4},
        "refine": None,
    }
    assert Recipe(Magnitude(), NM(2, 4)).key == "e0131ff0f1eca46e"


def test_a_field_that_came_later_changes_no_key_and_old_plain_data_means_what_it_meant():
    published = {DSnoT(max_cycles=50): "adec3b3aa289fd7b", ExactSwap(max_cycles=10): "57fccb8157f16593"}
    for refiner, key in (published | {AS_PUBLISHED: "8ae8e535420bf71a"}).items():
        assert Recipe("wanda", "2:4", refiner).key == key

    @dataclasses.dataclass(frozen=True)
    class Newer(DSnoT):
        cycles_for_width: int | None = later(before=None, default=4096)  # a default chosen afterwards

    old = Recipe("wanda", "2:4", DSnoT()).to_dict()
    assert "cycles_for_width" not in old["refine"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REFINERS, "dsnot", Newer)
        assert Recipe.from_dict(old).refine == Newer(cycles_for_width=None)
        assert Recipe.from_dict(old).to_dict() == old
        assert parse_method("refinement", "dsnot", REFINERS).cycles_for_width == 4096
        assert Recipe("wanda", "2:4", Newer()).to_dict()["refine"]["cycles_for_width"] == 4096


def test_labels_show_what_differs_from_the_defaults():
    assert Recipe(RIA(alpha=0.5), Unstructured(0.6)).label == "ria, 0.6 per output"
    assert (
        Recipe(RIA(alpha=1.0), NM(4, 8), DSnoT(max_cycles=3)).label
        == "ria(alpha=1.0) + dsnot(max_cycles=3), 4:8"
    )
    assert Recipe(LpNorm(p=math.inf), Unstructured(0.5, "layer")).label == "lp_norm(p=inf), 0.5 per layer"
    assert method_label(StochRIA(sampling="shared", seed=3)) == "stochria(sampling='shared', seed=3)"


def test_a_recipe_without_an_update_says_nothing_of_it_and_one_with_it_says_it_last():
    refit = Recipe("wanda", "0.6", update="refit(damping=0.1)")
    assert refit.to_dict().keys() - Recipe("wanda", "0.6").to_dict().keys() == {"update"}
    assert refit.label == "wanda, 0.6 per output, refit(damping=0.1)"
    assert Recipe("sparsegpt", "2:4", update="sequential").label == "sparsegpt, 2:4, sequential"
    assert (refit.update, Recipe("sparsegpt").score) == (Refit(damping=0.1), SparseGPT())
    assert refit.uses == {"input_norm", "gram"}
    assert Recipe("magnitude", update=SymmetricRefit()).uses == {"gram", "gradient_gram"}
    assert Recipe("magnitude", update=SymmetricRefit(product=0, outputs=0)).uses == {"gram"}
    assert Recipe("wanda", update="none") == Recipe("wanda")


def test_linears_by_name_have_other_patterns_or_none_and_the_first_glob_that_fits_decides():
    recipe = Recipe("ria", "0.5 per layer", by_name={"layers.0.*": "dense", "mlp.*": "0.7", "q_proj": "2:4"})
    found = {
        "model.layers.0.mlp.up_proj": None,
        "model.layers.10.mlp.up_proj": Unstructured(0.7, "layer"),
        "model.layers.1.self_attn.q_proj": NM(2, 4),
        "model.layers.1.self_attn.k_proj": Unstructured(0.5, "layer"),
        "model.layers.1.clip_mlp.q_projection": Unstructured(0.5, "layer"),  # a part of a name is not its end
    }
    assert {name: recipe.pattern_of(name) for name in found} == found
    assert recipe.label == "ria, 0.5 per layer, layers.0.*: dense, mlp.*: 0.7 per layer, q_proj: 2:4"
    recipe.check_names(list(found))
    assert recipe.to_dict()["by_name"] == [
        ["layers.0.*", None],
        ["mlp.*", {"name": "unstructured", "sparsity": 0.7, "group": "layer"}],
        ["q_proj", {"name": "nm", "n": 2, "m": 4}],
    ]
    assert "by_name" not in Recipe("ria").to_dict()
    assert hash(recipe) == hash(Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))))


def test_the_order_of_globs_is_part_of_what_is_asked():
    globs = [("mlp.*", "0.7"), ("layers.0.*", "dense")]
    one, other = Recipe("ria", by_name=globs), Recipe("ria", by_name=globs[::-1])
    assert one.key != other.key
    assert one.label != other.label


@pytest.mark.parametrize(
    ("by_name", "words"),
    [
        ({"mpl.*": "dense"}, ["'mpl.*' fits no linear", "mlp.*"]),
        ({"layers.2.*": "0.7"}, ["'layers.2.*' fits no linear", "layers.0.*"]),
        ({"vision": "0.7"}, ["called model.layers.0.mlp.up_proj to model.layers.1.mlp.up_proj"]),
        ({"mlp.*": "dense", "layers.0.*": "0.7"}, ["'layers.0.*' decides of no linear"]),
        ([("mlp.*", "0.6"), ("mlp.*", "0.7")], ["'mlp.*' decides of no linear"]),
        ({"*": None}, ["every linear would be left dense"]),
    ],
)
def test_globs_without_effect_are_refused(by_name, words):
    names = ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]
    with pytest.raises(UserError) as error:
        Recipe("ria", by_name=by_name).check_names(names)
    assert all(word in str(error.value) for word in words), error.value


def test_patterns_that_differ_have_labels_that_differ():
    patterns = [
        Unstructured(0.5),
        Unstructured(0.5, "layer"),
        Unstructured(0.5001),
        Unstructured(0.50011),
        NM(2, 4),
        NM(4, 8),
    ]
    assert len({pattern_label(pattern) for pattern in patterns}) == len(patterns)


def test_a_recipe_uses_what_its_score_and_its_refinement_read():
    assert Recipe(Magnitude()).uses == frozenset()
    assert Recipe(Wanda()).uses == {"input_norm"}
    assert Recipe(Magnitude(), refine=DSnoT()).uses == frozenset(DSnoT().uses)
    assert Recipe(RIA(alpha=0.0)).uses == frozenset()


def test_patterns_are_read_from_text():
    assert parse_pattern("2:4") == NM(2, 4)
    assert parse_pattern("4:8", sparsity=0.9, group="layer") == NM(4, 8)
    assert parse_pattern("unstructured", 0.7, "layer") == Unstructured(0.7, "layer")


def test_a_sparsity_alone_is_a_pattern_too():
    assert parse_pattern("0.6") == parse_pattern(".6") == Unstructured(0.6)
    assert parse_pattern("0.6 per output", group="layer") == Unstructured(0.6, "output")
    assert parse_pattern("0.25 per layer") == Unstructured(0.25, "layer")
    for text, words in {"1.0": r"\[0, 1\)", "0.6 per row": "unknown group 'row'"}.items():
        with pytest.raises(UserError, match=words):
            parse_pattern(text)


@given(methods(SCORES), methods(REFINERS))
@settings(max_examples=50, deadline=None)
def test_text_in_a_recipe_is_the_object_that_it_describes(score, refine):
    recipe = Recipe(method_label(score), "2:4", method_label(refine))
    assert recipe == Recipe(score, NM(2, 4), refine)
    assert (recipe.score, recipe.pattern, recipe.refine) == (score, NM(2, 4), refine)
    assert (recipe.key, recipe.label) == (Recipe(score, NM(2, 4), refine).key, recipe.label)


def test_text_and_objects_may_be_mixed():
    assert Recipe("ria(alpha=1)", "0.6", "none") == Recipe(RIA(alpha=1.0), Unstructured(0.6))
    assert Recipe("wanda", Unstructured(0.7, "layer")).label == "wanda, 0.7 per layer"
    assert Recipe(Magnitude(), refine="dsnot(max_cycles=3)").refine == DSnoT(max_cycles=3)
    with pytest.raises(UserError, match=r"cycles_for_width of dsnot must be of type int \| None, not 'wide'"):
        Recipe(Magnitude(), refine="dsnot(cycles_for_width='wide')")
    assert Recipe.from_dict(Recipe("ria", "4:8", "r2dsnot").to_dict()) == Recipe("ria", "4:8", "r2dsnot")


@dataclass(frozen=True)
class Halved:
    """A score of somebody's own, in no registry."""

    uses: ClassVar[tuple[str, ...]] = ()

    def __call__(self, weight, stats):
        return weight.abs() / 2


def test_a_score_of_ones_own_stands_in_a_recipe_by_the_name_of_its_class():
    recipe = Recipe(Halved(), NM(2, 4))
    assert recipe.label == "Halved, 2:4"
    assert recipe.key != Recipe(Magnitude(), NM(2, 4)).key
    with pytest.raises(UserError, match="unknown score 'Halved'"):
        Recipe.from_dict(recipe.to_dict())


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (("rai",), "unknown score 'rai': did you mean ri or ria"),
        (("ria(",), "cannot read the score"),
        (("ria", "2-4"), "unknown pattern '2-4'"),
        (("ria", "0:4"), "0 < n <= m"),
        (("ria", "2:4", "dsno"), "unknown refinement 'dsno': did you mean dsnot"),
        ((RIA,), "RIA'> is no score: give text"),
        ((DSnoT(),), r"DSnoT\(.* is no score"),
        ((None,), "None is no score"),
        ((RIA(), 0.6), r"0\.6 is no pattern: give text, .* or an object of Unstructured, NM"),
        ((RIA(), RIA()), "is no pattern"),
        ((RIA(), None), "None is no pattern"),
        ((RIA(), NM(2, 4), Wanda()), r"Wanda\(\) is no refinement"),
        ((RIA(), NM(2, 4), False), "False is no refinement"),
        (([0] * 1000,), r"\[\.\.\.\] is no score|\[0, 0, .* is no score"),
    ],
)
def test_what_is_no_part_of_a_recipe_is_refused_at_once_in_one_line(parts, words):
    with pytest.raises(UserError, match=words) as error:
        Recipe(*parts)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        ({}, ["needs a score"]),
        ({"score": None}, ["score of a recipe"]),
        ({"score": "ria"}, ["score of a recipe", "'ria'"]),
        ({"score": {"name": "ra"}}, ["unknown score 'ra'", "ria"]),
        ({"score": {"alpha": 1.0}}, ["unknown score 'None'"]),
        ({"score": {"name": ["ria"]}}, ["unknown score"]),
        ({"score": {"name": "ria", "alfa": 1.0}}, ["hyperparameter of ria 'alfa'", "alpha"]),
        ({"score": {"name": "ria", "alpha": "1"}}, ["alpha", "float", "'1'"]),
        ({"score": {"name": "ria", "alpha": True}}, ["alpha", "True"]),
        ({"score": {"name": "ria", "alpha": None}}, ["alpha", "None"]),
        ({"score": {"name": "symmetric", "squared": 1}}, ["squared", "bool"]),
        ({"score": {"name": "stochria", "seed": 0.5}}, ["seed", "int"]),
        ({"score": {"name": "ria"}, "patern": {"name": "nm"}}, ["patern", "pattern"]),
        ({"score": {"name": "ria"}, "pattern": None}, ["pattern of a recipe"]),
        ({"score": {"name": "ria"}, "pattern": {"name": "nm", "n": 5, "m": 4}}, ["5:4"]),
        ({"score": {"name": "ria"}, "pattern": {"name": "unstructured", "sparsity": 1.0}}, ["[0, 1)"]),
        ({"score": {"name": "ria"}, "refine": {"name": "dsnott"}}, ["unknown refine", "dsnot"]),
        ({"score": {"name": "ria"}, "by_name": {"mlp.*": None}}, ["by_name", "list"]),
        ({"score": {"name": "ria"}, "by_name": [["mlp.*", "0.7"]]}, ["pattern of a recipe", "'0.7'"]),
        ({"score": {"name": "ria"}, "by_name": [[1, None]]}, ["globs", "1"]),
    ],
)
def test_plain_data_that_is_no_recipe_is_refused_with_what_is_wrong(plain, words):
    with pytest.raises(UserError) as error:
        Recipe.from_dict(plain)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "(",
        "ria(",
        "ria(0.5)",
        "a.b",
        "1",
        "ria()()",
        "ria(alpha=x)",
        "ria(**{})(1)",
        "lambda: 0",
        "ria;wanda",
    ],
)
def test_text_that_is_no_method_is_refused(text):
    with pytest.raises(UserError, match=r"cannot read the score|unknown score"):
        parse_method("score", text, SCORES)


@given(st.text(max_size=20))
@settings(max_examples=100, deadline=None)
def test_any_text_is_a_method_or_refused_in_one_line(text):
    refusal = ""
    try:
        assert method_dict(parse_method("score", text, SCORES))["name"] in text
    except UserError as error:
        refusal = str(error)
    assert "\n" not in refusal


@pytest.mark.parametrize("text", ["", "2:", ":4", "2:4:8", "two:four", "-2:4", "2 : 4", "Unstructured"])
def test_text_that_is_no_pattern_is_refused(text):
    with pytest.raises(UserError, match="unknown pattern"):
        parse_pattern(text)
