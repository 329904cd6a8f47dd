"""The recipe: its cosine, and the numbers that it refuses."""

import pytest

from xmsd_jax.config import ConfigError, load
from xmsd_jax.training.recipe import Recipe


def test_the_learning_rate_falls_along_a_cosine_and_stays_at_its_end():
    recipe = Recipe(learning_rate=1e-3, final_learning_rate=1e-6, cosine_epochs=10)
    assert recipe.rate(0) == pytest.approx(1e-3)
    assert recipe.rate(5) == pytest.approx((1e-3 + 1e-6) / 2)
    assert recipe.rate(10) == recipe.rate(25) == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch", 0),
        ("patience", 0),
        ("checkpoint_every", 0),
        ("learning_rate", 0.0),
        ("clip", -1.0),
        ("final_learning_rate", 0.1),
        ("weight_decay", -0.1),
        ("dropout", 1.0),
        ("seed", -1),
        ("loss", "mse"),
        ("select", "cosine"),
    ],
)
def test_impossible_numbers_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=field):
        load(Recipe, {field: value})
