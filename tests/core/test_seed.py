"""The seed of a table: what it is drawn from, that first rows stay what they were, and that it goes along."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsembed as se

KINDS = {
    "class": lambda rng: se.EmbeddingTable(5, 3, rng=rng),
    "from_array": lambda rng: se.EmbeddingTable.from_array(np.zeros((5, 3)), rng=rng),
}


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**64 - 1))
def test_an_integer_is_the_seed_itself(kind, seed):
    assert KINDS[kind](seed).seed == seed


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_integers_are_integers(kind):
    found = KINDS[kind](np.int32(7)).seed
    assert (type(found), found) == (int, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_without_rng_each_table_has_another_seed(kind):
    seeds = [KINDS[kind](None).seed for _ in range(3)]
    assert len({*seeds}) == 3
    assert all(0 <= seed < 2**64 for seed in seeds)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rng", [2**64, 2**200 + 1, np.random.SeedSequence(3), [1, 2, 3]], ids=repr)
def test_what_is_no_seed_itself_gives_one(kind, rng):
    seed = KINDS[kind](copy.deepcopy(rng)).seed
    assert 0 <= seed < 2**64
    assert seed == KINDS[kind](copy.deepcopy(rng)).seed


def test_64_bits_are_drawn_after_the_first_rows():
    mine, its = np.random.default_rng(5), np.random.default_rng(5)
    table = se.EmbeddingTable(5, 3, rng=mine)
    np.testing.assert_array_equal(table.weight, se.initializers.uniform((5, 3), rng=its))
    assert table.seed == int(its.integers(2**64 - 1, dtype=np.uint64, endpoint=True))
    assert mine.bit_generator.state == its.bit_generator.state


@pytest.mark.parametrize("rng", [0, 2**70, np.random.SeedSequence(3)], ids=repr)
def test_first_rows_are_those_of_the_initializer(rng):
    np.testing.assert_array_equal(se.EmbeddingTable(5, 3, rng=rng).weight, se.initializers.uniform((5, 3), rng=rng))


@pytest.mark.parametrize("rng", ["seven", 1.5, -1])
def test_what_no_generator_comes_of_is_refused_before_anything_is_written(rng):
    weight = np.ones((3, 2))
    for make in (
        lambda: se.EmbeddingTable(3, 2, rng=rng),
        lambda: se.EmbeddingTable.from_array(weight, padding_idx=1, rng=rng),
    ):
        with pytest.raises((TypeError, ValueError)):
            make()
    assert (weight == 1).all()


def test_copies_and_pickles_have_the_seed_and_state_dicts_do_not():
    table = se.EmbeddingTable(5, 3, se.SGD(lr=0.1))
    assert copy.deepcopy(table).seed == pickle.loads(pickle.dumps(table)).seed == table.seed
    assert sorted(table.state_dict()) == ["step", "weight"]


def test_a_pickle_of_an_older_version_gets_a_seed():
    table = se.EmbeddingTable(5, 3, rng=3)
    state = table.__getstate__()
    del state["seed"]
    older = se.EmbeddingTable.__new__(se.EmbeddingTable)
    older.__setstate__(state)
    assert 0 <= older.seed < 2**64
    np.testing.assert_array_equal(older.weight, table.weight)


def test_the_seed_cannot_be_set():
    with pytest.raises(AttributeError):
        se.EmbeddingTable(5, 3).seed = 1
