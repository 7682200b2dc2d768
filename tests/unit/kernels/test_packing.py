from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.kernels.packed_batch import SHARED, PackedBatch
from rlhf.kernels.packing import Tree, pack

PAD = 0
ids = st.integers(1, 9)
sequences = st.lists(st.lists(ids, min_size=1, max_size=8), min_size=1, max_size=4)
trees = st.builds(
    Tree,
    st.lists(ids, max_size=6).map(tuple),
    st.lists(st.lists(ids, min_size=1, max_size=5).map(tuple), min_size=1, max_size=4).map(tuple),
)
forests = st.lists(trees, min_size=1, max_size=8)
few = settings(max_examples=60, deadline=None)


def one_batch(*trees: Tree, short_row: int = 256) -> PackedBatch:
    (batch,) = pack(trees, 10_000, pad_id=PAD, short_row=short_row)
    return batch


def common_prefixes(batch: PackedBatch, forest: list[Tree]) -> list[tuple[int, ...]]:
    """The common prefix of each row's trees, token by token (unlike `pack`); empty for a single tree."""
    prefixes, start = [], 0
    for numbers in batch.tree_RT.tolist():
        count = len({number for number in numbers if number >= 0})
        trunks = [forest[index].trunk for index in batch.trees[start : start + count]]
        start += count
        sets = [set(column) for column in zip(*trunks, strict=False)]
        same = list(itertools.takewhile(lambda tokens: len(tokens) == 1, sets))
        prefixes.append(tuple(min(tokens) for tokens in same) if count > 1 else ())
    return prefixes


def tokens_of(batch: PackedBatch) -> list[list[tuple[int, int, int]]]:
    """Each row as (tree, branch, id) without padding."""
    rows = zip(batch.tree_RT.tolist(), batch.branch_RT.tolist(), batch.ids_RT.tolist(), strict=True)
    return [[cell for cell in zip(*row, strict=True) if cell[0] != -1] for row in rows]


@pytest.mark.parametrize(
    ("input_sequences", "trunk", "branches"),
    [
        ([(1, 2, 3), (1, 2, 4, 5)], (1, 2), ((3,), (4, 5))),
        ([(1, 2), (3, 4)], (), ((1, 2), (3, 4))),
        # One is a prefix of the other: a branch keeps at least one token.
        ([(1, 2), (1, 2, 3)], (1,), ((2,), (2, 3))),
        ([(1, 2, 3), (1, 2, 3)], (1, 2), ((3,), (3,))),
        ([(7,)], (), ((7,),)),
        ([(1, 2, 3)], (1, 2), ((3,),)),
    ],
)
def test_the_trunk_is_the_longest_common_prefix(
    input_sequences: list[tuple[int, ...]], trunk: tuple[int, ...], branches: tuple[tuple[int, ...], ...]
) -> None:
    tree = Tree.of_sequences(input_sequences)
    assert (tree.trunk, tree.branches) == (trunk, branches)


@few
@given(sequences)
def test_a_tree_contains_its_sequences(input_sequences: list[list[int]]) -> None:
    tree = Tree.of_sequences(input_sequences)
    assert [list(tree.trunk + branch) for branch in tree.branches] == input_sequences
    assert tree.longest == max(map(len, input_sequences))
    assert tree.useful_tokens == sum(map(len, input_sequences))
    assert tree.tokens == len(tree.trunk) + sum(len(s) - len(tree.trunk) for s in input_sequences)


@pytest.mark.parametrize("bad", [[], [[1], []]])
def test_empty_sequences_are_refused(bad: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="empty"):
        Tree.of_sequences(bad)


@pytest.mark.parametrize("branches", [(), ((1,), ())])
def test_a_tree_without_branches_is_refused(branches: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="token"):
        Tree((1,), branches)


@few
@given(forests, st.integers(1, 40))
def test_every_tree_is_in_exactly_one_batch_within_the_budget(forest: list[Tree], budget: int) -> None:
    packed = list(pack(forest, budget, pad_id=PAD))
    assert sorted(itertools.chain.from_iterable(batch.trees for batch in packed)) == list(range(len(forest)))
    for batch in packed:
        rows, length = batch.ids_RT.shape
        assert rows * length <= budget + -budget % 16 or len(batch.trees) == 1
        used = [len(row) for row in tokens_of(batch)]
        assert length == max(used) + -max(used) % 16  # rounded up to the grain of 16
        assert sum(used) == batch.computed_tokens
        saved = sum(
            (len(set(numbers) - {-1, SHARED}) - 1) * len(shared)
            for numbers, shared in zip(batch.tree_RT.tolist(), common_prefixes(batch, forest), strict=True)
        )
        assert sum(used) == sum(forest[index].tokens for index in batch.trees) - saved
        assert batch.useful_tokens == sum(forest[index].useful_tokens for index in batch.trees)


@few
@given(forests, st.integers(1, 120), st.integers(1, 40))
def test_a_batch_holds_the_tokens_of_its_trees_in_order(
    forest: list[Tree], budget: int, short_row: int
) -> None:
    for batch in pack(forest, budget, pad_id=PAD, short_row=short_row):
        number = branch = 0
        for row, shared in zip(tokens_of(batch), common_prefixes(batch, forest), strict=True):
            expected = [(SHARED, -1, token) for token in shared]
            while len(expected) < len(row):
                tree = forest[batch.trees[number]]
                expected += [(number, -1, token) for token in tree.trunk[len(shared) :]]
                for ids in tree.branches:
                    expected += [(number, branch, token) for token in ids]
                    branch += 1
                number += 1
            assert row == expected
        assert number == len(batch.trees)


def test_first_fit_leaves_no_room_that_a_later_tree_could_take() -> None:
    forest = [Tree((), ((1,) * size,)) for size in (3, 7, 4, 6)]
    assert [batch.trees for batch in pack(forest, 10, pad_id=PAD)] == [(0, 1), (2, 3)]


@few
@given(forests)
def test_positions_equal_those_of_the_sequence_alone(forest: list[Tree]) -> None:
    batch = one_batch(*forest)
    (shared,) = common_prefixes(batch, forest)
    expected = list(range(len(shared)))
    for tree in forest:
        expected += range(len(shared), len(tree.trunk))
        for branch in tree.branches:
            expected += range(len(tree.trunk), len(tree.trunk) + len(branch))
    assert batch.positions_RT[0, : len(expected)].tolist() == expected


short_rows = st.sampled_from([16, 256])
"""Many rows per batch, or one."""


@few
@given(forests, short_rows)
def test_the_mask_follows_its_definition(forest: list[Tree], short_row: int) -> None:
    """A token attends to the row's common prefix, the trunk of its tree and its branch, up to itself."""
    batch = one_batch(*forest, short_row=short_row)
    rows, length = batch.ids_RT.shape
    assert batch.mask_R1TT().shape == (rows, 1, length, length)
    for row, mask in zip(tokens_of(batch), batch.mask_R1TT()[:, 0], strict=True):
        for query, (tree, branch, _) in enumerate(row):
            for key in range(mask.shape[1]):
                key_tree, key_branch, _ = row[key] if key <= query else (None, None, None)
                visible = key_tree == SHARED or (key_tree == tree and key_branch in {-1, branch})
                assert bool(mask[query, key]) == visible, (query, key)
        # Padding attends to something, or softmax would divide by zero, but to no real token.
        assert mask[len(row) :].any(dim=1).all()
        assert not mask[len(row) :, : len(row)].any()


@few
@given(forests, short_rows)
def test_the_last_token_of_each_branch(forest: list[Tree], short_row: int) -> None:
    batch = one_batch(*forest, short_row=short_row)
    last = {
        branch: (r, c)
        for r, row in enumerate(tokens_of(batch))
        for c, (_, branch, _) in enumerate(row)
        if branch >= 0
    }
    rows, columns = batch.last_tokens_N
    assert dict(enumerate(zip(rows.tolist(), columns.tolist(), strict=True))) == last
    assert len(rows) == sum(len(tree.branches) for tree in forest)


def following_ids(batch: PackedBatch) -> torch.Tensor:
    """For each token the next id of its branch, or -100."""
    ids_RT = torch.full_like(batch.ids_RT, -100)
    ids_RT[batch.next_tokens.index] = batch.next_tokens.ids_M
    return ids_RT


@few
@given(forests, short_rows)
def test_the_next_token_is_of_the_same_branch(forest: list[Tree], short_row: int) -> None:
    batch = one_batch(*forest, short_row=short_row)
    for row, following in zip(tokens_of(batch), following_ids(batch).tolist(), strict=True):
        for column, (_, branch, _) in enumerate(row):
            continues = branch >= 0 and column + 1 < len(row) and row[column + 1][1] == branch
            assert following[column] == (row[column + 1][2] if continues else -100)
        assert set(following[len(row) :]) <= {-100}


def test_rows_of_similar_length_share_a_batch() -> None:
    """Attention is quadratic in the row length, so trees go into several rows."""
    forest = [Tree((), ((1,) * size,)) for size in (100, 30, 90, 10, 95)]
    batches = list(pack(forest, 208, pad_id=PAD, short_row=32))
    # Rows: 100 (padded to 112), 95 (96), 90 + 0, and 30; the row of 30 has no room for 10, that of 100
    # neither.
    assert [batch.trees for batch in batches] == [(0,), (4, 2), (1, 3)]
    assert [tuple(batch.ids_RT.shape) for batch in batches] == [(1, 112), (2, 96), (2, 32)]


def test_a_tree_goes_to_the_row_with_the_longest_shared_prefix() -> None:
    """Two system prompts with two prompts each: a tree goes to the row that it lengthens least."""
    forest = [Tree((start,) * 20 + (last,), ((1, 2),)) for last, start in enumerate((7, 8, 7, 8), start=1)]
    batches = list(pack(forest, 45, pad_id=PAD))
    assert [batch.trees for batch in batches] == [(0, 2), (1, 3)]
    assert [batch.computed_tokens for batch in batches] == [20 + 2 * 3, 20 + 2 * 3]
    assert [batch.useful_tokens for batch in batches] == [2 * 23, 2 * 23]


def test_a_shared_prefix_makes_room() -> None:
    """Three trees of 24 tokens, of which 20 are shared, fit into 32.

    With another prefix the third does not.
    """
    same = [Tree((7,) * 20 + (last,), ((1, 2, 3),)) for last in (1, 2, 3)]
    assert [batch.trees for batch in pack(same, 32, pad_id=PAD)] == [(0, 1, 2)]
    other = [*same[:2], Tree((8,) * 20 + (3,), ((1, 2, 3),))]
    assert [batch.trees for batch in pack(other, 32, pad_id=PAD)] == [(0, 1), (2,)]


def test_hand_computed_row_with_a_common_prefix() -> None:
    batch = one_batch(Tree((5, 6, 7), ((8,), (9,))), Tree((5, 6), ((4, 3),)))
    pad = [PAD] * 9
    assert batch.ids_RT.tolist() == [[5, 6, 7, 8, 9, 4, 3, *pad]]
    assert batch.positions_RT.tolist() == [[0, 1, 2, 3, 3, 2, 3, *[0] * 9]]
    assert batch.tree_RT.tolist() == [[SHARED, SHARED, 0, 0, 0, 1, 1, *[-1] * 9]]
    assert batch.branch_RT.tolist() == [[-1, -1, -1, 0, 1, 2, 2, *[-1] * 9]]
    seen = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 5], [0, 1, 5, 6]]
    mask = batch.mask_R1TT()[0, 0]
    assert [torch.nonzero(mask[query]).flatten().tolist() for query in range(7)] == seen
    assert torch.nonzero(mask[7]).flatten().tolist() == [7]  # padding


def test_hand_computed_row() -> None:
    batch = one_batch(Tree((5, 6), ((7, 8), (9,))), Tree((), ((3, 4),)))
    pad = [PAD] * 9
    assert batch.ids_RT.tolist() == [[5, 6, 7, 8, 9, 3, 4, *pad]]
    assert batch.positions_RT.tolist() == [[0, 1, 2, 3, 2, 0, 1, *[0] * 9]]
    assert batch.branch_RT.tolist() == [[-1, -1, 0, 0, 1, 2, 2, *[-1] * 9]]
    assert batch.last_tokens_N[1].tolist() == [3, 4, 6]
    assert following_ids(batch)[0, :7].tolist() == [-100, -100, 8, -100, -100, 4, -100]
    seen = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [5], [5, 6]]
    mask = batch.mask_R1TT()[0, 0]
    assert [torch.nonzero(mask[query]).flatten().tolist() for query in range(7)] == seen


def test_one_sequence_per_row() -> None:
    """Trunks are repeated, and the rows of a tree stay in one batch."""
    forest = [Tree((5, 6), ((7, 8), (9,))), Tree((1,), ((2, 3, 4),)), Tree((), ((4,) * 20,))]
    batches = list(pack(forest, 64, pad_id=PAD, one_per_row=True))
    assert [batch.trees for batch in batches] == [(2,), (0, 1)]
    small = batches[1]
    assert small.one_per_row
    assert [row[:4] for row in small.ids_RT.tolist()] == [[5, 6, 7, 8], [5, 6, 9, PAD], [1, 2, 3, 4]]
    assert [row[:4] for row in small.positions_RT.tolist()] == [[0, 1, 2, 3], [0, 1, 2, 0], [0, 1, 2, 3]]
    assert [part.tolist() for part in small.last_tokens_N] == [[0, 1, 2], [3, 2, 3]]
    following = small.next_tokens
    assert following.ids_M.tolist() == [8, 3, 4]
    assert following.branch_M.tolist() == [0, 2, 2]
    assert [part.tolist() for part in following.index] == [[0, 2, 2], [2, 1, 2]]
    assert (small.computed_tokens, small.useful_tokens) == (11, 11)
