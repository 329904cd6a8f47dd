"""Array aliases: what they name is what a checker enforces."""

import numpy as np
import pytest
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

from xmsd_jax import shapes

FITTING = {
    "Image": np.zeros((4, 6, 3), np.uint8),
    "Video": np.zeros((2, 4, 6, 3), np.uint8),
    "TokenIds": np.zeros(5, np.int32),
    "TimesUs": np.zeros(5, np.int64),
}


@pytest.mark.parametrize("alias", FITTING)
@pytest.mark.parametrize("given", FITTING)
def test_an_alias_takes_its_own_arrays_and_no_others(alias, given):
    def read(array: getattr(shapes, alias)) -> int:
        return array.size

    checked = jaxtyped(typechecker=beartype)(read)
    if alias == given:
        assert checked(FITTING[given]) == FITTING[given].size
    else:
        with pytest.raises(TypeCheckError):
            checked(FITTING[given])
