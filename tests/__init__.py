"""The tests; `./test.sh` runs them."""

import pkgutil

import pytest

# What a helper asserts is told as whole as what a test asserts.
pytest.register_assert_rewrite(
    *(f"{__name__}.{found.name}" for found in pkgutil.iter_modules(__path__))
)
