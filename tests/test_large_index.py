"""More vectors than are compared exactly: what is found then, and with what it may be given."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from gpuserver.providers.coarse import FEWEST_DIMENSIONS, candidates
from gpuserver.providers.numpy import NumpyIndex
from tests.vectors import about, missed_by_threads, one_sided, recall, topics, unit

ROWS = 20_000
LARGE = NumpyIndex(exact_rows=1000)
EXACT = NumpyIndex(exact_rows=ROWS)

Matrix = NDArray[np.float32]


@pytest.mark.parametrize(
    ("make", "dimension", "near", "far"),
    [
        (topics, 384, 0.99, 0.9),
        (one_sided, 384, 0.99, 0.85),
        (unit, 384, 0.9, 0.85),
        (topics, 100, 0.99, 0.85),
        (unit, FEWEST_DIMENSIONS, 0.9, 0.85),
    ],
)
def test_the_nearest_are_found_whatever_the_rows_and_the_questions(
    make: Callable[[int, int], Matrix], dimension: int, near: float, far: float
) -> None:
    matrix = make(ROWS, dimension)
    vectors = LARGE.hold(matrix)
    assert recall(vectors, matrix, about(matrix[:: ROWS // 40], seed=2)) >= near
    assert recall(vectors, matrix, unit(40, dimension, seed=3)) >= far


def test_what_is_found_has_its_exact_cosine_and_all_else_none() -> None:
    matrix = topics(ROWS, 384)
    query = matrix[17]
    found, exact = LARGE.hold(matrix).cosines(query), EXACT.hold(matrix).cosines(query)
    (rows,) = np.nonzero(found)
    assert 0 < len(rows) <= candidates(ROWS) < ROWS
    np.testing.assert_allclose(found[rows], exact[rows], atol=1e-5)
    assert int(found.argmax()) == 17


def test_up_to_the_limit_every_row_is_compared() -> None:
    matrix = unit(1000, 384)
    query = unit(1, 384, seed=2)[0]
    np.testing.assert_array_equal(LARGE.hold(matrix).cosines(query), matrix @ query)
    one_more = unit(1001, 384)
    assert np.count_nonzero(LARGE.hold(one_more).cosines(query)) == candidates(1001)


def test_rows_of_few_dimensions_are_all_compared() -> None:
    matrix, query = unit(5000, FEWEST_DIMENSIONS - 1), unit(1, FEWEST_DIMENSIONS - 1, seed=2)[0]
    np.testing.assert_array_equal(LARGE.hold(matrix).cosines(query), matrix @ query)


@pytest.mark.parametrize("rows", [1, 2, 31, 33])
def test_few_rows_are_found_too(rows: int) -> None:
    matrix = unit(rows, 384)
    found = NumpyIndex(exact_rows=0).hold(matrix).cosines(matrix[-1])
    assert found.shape == (rows,)
    assert int(found.argmax()) == rows - 1


def test_rows_that_are_all_the_same_are_found() -> None:
    matrix = np.repeat(unit(1, 384), 2000, axis=0)
    found = LARGE.hold(matrix).cosines(matrix[0])
    assert found.max() == pytest.approx(1)
    assert np.count_nonzero(found) == candidates(2000)


@pytest.mark.parametrize("damage", [np.nan, 1e20])
@pytest.mark.parametrize("step", [1, 7])
def test_damaged_rows_do_not_hide_the_others(damage: float, step: int) -> None:
    whole = topics(ROWS, 384)
    matrix = whole.copy()
    matrix[::200, ::step] = damage
    query = about(whole[101:102], seed=2)[0]
    found = LARGE.hold(matrix).cosines(query)
    assert found[101] == pytest.approx(whole[101] @ query, abs=1e-5)


def test_a_question_that_says_nothing_is_no_error() -> None:
    matrix = topics(2000, 384)
    found = LARGE.hold(matrix).cosines(np.zeros(384, np.float32))
    assert found.shape == (2000,)
    assert not found.any()


def test_a_base_that_changes_is_held_anew_and_the_old_one_answers_on() -> None:
    old, new = topics(2000, 384), topics(2400, 384)
    before, after = LARGE.hold(old), LARGE.hold(new)
    assert int(before.cosines(old[1999]).argmax()) == 1999
    assert int(after.cosines(new[2399]).argmax()) == 2399


def test_threads_search_large_bases_at_once() -> None:
    matrix = topics(5000, 384)
    vectors = LARGE.hold(matrix)
    assert missed_by_threads(vectors, matrix) == []
