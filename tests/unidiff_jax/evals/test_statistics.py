"""The rule from both sides: an oracle passes, everything that has not learned the task fails."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unidiff_jax.evals import metrics
from unidiff_jax.evals import statistics as stats

NUM_ITEMS, NUM_SEEDS = stats.MIN_ITEMS, stats.MIN_SEEDS


# ---------------------------------------------------------------------------- bootstrap


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        item = rng.exponential(size=(80, 1))  # skewed, mean 1
        values = item + 0.3 * rng.standard_normal((80, 3))
        _, low, high = stats.interval(values, num_resamples=300, seed=trial)
        hits += low <= 1.0 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_seeds_of_one_item_do_not_count_as_items():
    values = np.random.default_rng(1).standard_normal(100)
    once = stats.interval(values)
    tripled = stats.interval(np.repeat(values[:, None], 3, axis=1))
    np.testing.assert_allclose(once, tripled)


def test_pairing_cancels_what_makes_an_item_hard():
    rng = np.random.default_rng(2)
    difficulty = rng.standard_normal(300)
    baseline = difficulty + 0.05 * rng.standard_normal(300)
    values = difficulty + 0.05 + 0.05 * rng.standard_normal(300)
    paired = stats.paired_difference(values, baseline=baseline)
    unpaired = stats.paired_difference(values, baseline=rng.permutation(baseline))
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.low > 0 > unpaired.low
    assert (paired.high - paired.low) < 0.2 * (unpaired.high - unpaired.low)


def test_ratio_of_sums_is_the_cumulative_iou():
    rng = np.random.default_rng(3)
    prediction, target = rng.random((2, 50, 8, 8)) < rng.random((2, 50, 1, 1))
    ratio = stats.Ratio(*metrics.mask_overlap(prediction, target=target))
    result = stats.interval(ratio, num_resamples=500)
    assert result.value == pytest.approx((prediction & target).sum() / (prediction | target).sum())
    assert result.value != pytest.approx(metrics.mask_iou(prediction, target=target).mean())
    assert result.low < result.value < result.high
    # By hand, from the same resamples.
    order = stats.bootstrap_order(50, num_resamples=500)
    by_hand = [ratio.numerator[o].sum() / ratio.denominator[o].sum() for o in order]
    np.testing.assert_allclose(result[1:], np.quantile(by_hand, [0.025, 0.975]))


def test_ratio_averages_seeds_within_an_item_and_pairs():
    rng = np.random.default_rng(4)
    union = rng.uniform(50, 100, size=(200, 3))
    good = stats.Ratio(0.8 * union, union)
    poor = stats.Ratio(0.5 * union, union)
    difference = stats.paired_difference(good, baseline=poor)
    np.testing.assert_allclose(difference, 0.3)


@settings(max_examples=50, deadline=None)
@given(num_items=st.integers(2, 200), seed=st.integers(0, 1000))
def test_shuffling_leaves_no_item_in_its_place(num_items, seed):
    order = stats.shuffled_order(num_items, seed=seed)
    assert sorted(order) == list(range(num_items))
    assert (order != np.arange(num_items)).all()


def test_what_cannot_be_resampled_raises():
    with pytest.raises(ValueError, match=r"2 items without a finite value, the first at index 1"):
        stats.interval(np.array([0.0, np.nan, 1.0, np.inf]))
    with pytest.raises(ValueError, match=r"shape \(items,\) or \(items, seeds\)"):
        stats.interval(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match="cannot pair 3 items with a baseline of 4"):
        stats.paired_difference(np.zeros(3), baseline=np.zeros(4))
    with pytest.raises(ValueError, match="at least 2 items"):
        stats.shuffled_order(1)
    with pytest.raises(ValueError, match="floors is empty"):
        stats.verdict(np.zeros(3), floors={}, shuffled=np.zeros(3))
    with pytest.raises(ValueError, match="'copy' and the values must both be"):
        stats.verdict(
            stats.Ratio(np.ones(3), np.ones(3)), floors={"copy": np.zeros(3)}, shuffled=np.zeros(3)
        )


# ---------------------------------------------------------------------------- the rule


@pytest.fixture(scope="module")
def depth_items():
    """Smooth random depth maps with a prior, for models that range from oracle to constant."""
    rng = np.random.default_rng(5)
    size = 8
    offset, slope_y, slope_x = rng.uniform([2, -1, -1], [4, 1, 1], size=(NUM_ITEMS, 3)).T
    y, x = np.mgrid[0:1:8j, 0:1:8j]
    target = offset[:, None, None] + slope_y[:, None, None] * y + slope_x[:, None, None] * x
    mask = np.ones((NUM_ITEMS, size, size), dtype=bool)
    return {"target": target, "prior": target.mean(axis=0), "mask": mask}


def judge_depth(items, *, samples, minimum=None):
    """Score samples of shape (seeds, items, h, w) as an evaluation would."""
    target, prior, mask = items["target"], items["prior"], items["mask"]
    order = stats.shuffled_order(len(target))

    def score(prediction, truth):
        return metrics.depth_skill(prediction, target=truth, prior=prior, mask=mask)

    return stats.verdict(
        np.stack([score(s, target) for s in samples], axis=1),
        floors={
            "pixel mean": score(np.broadcast_to(prior, target.shape), target),
            "constant": score(np.full(target.shape, target.mean()), target),
        },
        shuffled=np.stack([score(s, target[order]) for s in samples], axis=1),
        minimum=minimum,
        num_resamples=1000,
    )


def test_an_oracle_reaches_the_ceiling_and_has_learned(depth_items):
    samples = np.repeat(depth_items["target"][None], NUM_SEEDS, axis=0)
    result = judge_depth(depth_items, samples=samples, minimum=0.3)
    assert result.learned
    assert result.value == (1.0, 1.0, 1.0)
    assert result.reason.endswith("its interval clears the task's minimum, 0.300")
    assert result.floor_name == "pixel mean" and result.floor == pytest.approx(0.0, abs=1e-12)
    assert "beats the best floor, pixel mean, by +1.000" in result.reason
    assert (result.num_items, result.num_seeds) == (NUM_ITEMS, NUM_SEEDS)


def test_a_good_model_has_learned(depth_items):
    rng = np.random.default_rng(6)
    noise = rng.standard_normal((NUM_SEEDS, *depth_items["target"].shape))
    assert judge_depth(depth_items, samples=depth_items["target"] + 0.1 * noise).learned


def test_an_untrained_network_has_not_learned(depth_items):
    rng = np.random.default_rng(7)
    samples = rng.uniform(0.5, 6, size=(NUM_SEEDS, *depth_items["target"].shape))
    result = judge_depth(depth_items, samples=samples)
    assert not result.learned
    assert "does not beat the best floor, pixel mean" in result.reason
    assert "does not beat shuffled conditions" in result.reason


def test_the_trivial_predictor_itself_has_not_learned(depth_items):
    shape = (NUM_SEEDS, *depth_items["target"].shape)
    result = judge_depth(depth_items, samples=np.broadcast_to(depth_items["prior"], shape))
    assert not result.learned
    assert result.value.value == pytest.approx(0.0, abs=1e-12)


def test_an_unconditional_model_with_pretty_samples_has_not_learned():
    """Its outputs beat the floor whatever the condition says, so only (ii) can catch it."""
    rng = np.random.default_rng(8)
    quality = rng.uniform(0.6, 0.9, size=(NUM_ITEMS, NUM_SEEDS))
    shuffled = quality + 0.02 * rng.standard_normal(quality.shape)
    result = stats.verdict(quality, floors={"noise": np.full(NUM_ITEMS, 0.1)}, shuffled=shuffled)
    assert result.over_floor.low > 0.5
    assert not result.learned
    assert result.reason.startswith("does not beat shuffled conditions")


def test_pretty_depth_of_another_scene_has_not_learned(depth_items):
    order = stats.shuffled_order(NUM_ITEMS, seed=1)
    samples = np.repeat(depth_items["target"][order][None], NUM_SEEDS, axis=0)
    assert not judge_depth(depth_items, samples=samples).learned


@pytest.mark.parametrize(
    ("num_items", "num_seeds", "reason"),
    [
        (NUM_ITEMS - 1, 3, "too few items (299 of 300)"),
        (NUM_ITEMS, 2, "too few seeds (2 of 3)"),
        (NUM_ITEMS, 1, "too few seeds (1 of 3)"),
    ],
)
def test_too_little_evidence_is_not_learned(num_items, num_seeds, reason):
    values = np.ones((num_items, num_seeds))
    result = stats.verdict(values, floors={"copy": np.zeros(num_items)}, shuffled=values - 1)
    assert not result.learned and result.reason == reason


def test_the_best_floor_is_chosen_in_the_metrics_direction():
    rng = np.random.default_rng(9)
    noise = 0.01 * rng.standard_normal((NUM_ITEMS, 3))
    floors = {"copy": np.full(NUM_ITEMS, 0.2), "mean image": np.full(NUM_ITEMS, 0.4)}
    higher = stats.verdict(0.3 + noise, floors=floors, shuffled=noise)
    assert (higher.floor_name, higher.learned) == ("mean image", False)
    error = stats.verdict(
        0.1 + noise, floors=floors, shuffled=0.3 + noise, higher_is_better=False, minimum=0.15
    )
    assert (error.floor_name, error.learned) == ("copy", True)
    assert error.over_floor.value == pytest.approx(0.1, abs=0.01)
    assert error.value.value == pytest.approx(0.1, abs=0.01)


def test_a_task_can_ask_for_more():
    noise = np.random.default_rng(10).standard_normal((NUM_ITEMS, 3))
    values = 0.305 + 0.2 * (noise - noise.mean())
    arguments = {"floors": {"prior": np.zeros(NUM_ITEMS)}, "shuffled": values - 0.2}
    assert stats.verdict(values, **arguments).learned
    result = stats.verdict(values, **arguments, minimum=0.3)
    assert result.value.value > 0.3 > result.value.low
    assert not result.learned and "minimum" in result.reason


def test_cumulative_iou_goes_through_the_rule():
    rng = np.random.default_rng(11)
    union = rng.uniform(50, 100, size=(NUM_ITEMS, 3))
    result = stats.verdict(
        stats.Ratio(0.7 * union, union),
        floors={"all objects": stats.Ratio(0.4 * union[:, 0], union[:, 0])},
        shuffled=stats.Ratio(0.3 * union, union),
    )
    assert result.learned and result.value.value == pytest.approx(0.7)


def test_a_mean_of_groups_counts_groups_alike_and_resamples_within_them():
    rng = np.random.default_rng(0)
    groups = {"few": rng.random(20), "many": rng.random(2000) + 1.0}
    found = stats.mean_of_groups(groups)
    assert found.value == pytest.approx(np.mean([values.mean() for values in groups.values()]))
    spread = np.sqrt(sum(values.var() / len(values) for values in groups.values())) / 2
    assert (found.high - found.low) / (2 * 1.96 * spread) == pytest.approx(1, abs=0.1)
    # The groups are 1 apart: resampling them together would spread the mean of their means by it.
    assert stats.mean_of_groups({"one": groups["few"]}) == stats.interval(groups["few"])
    with pytest.raises(ValueError, match="groups is empty"):
        stats.mean_of_groups({})
