"""A table of contrasts is the sequence that it was made of, in memory and mapped from a file."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pytest

from lit_attr.facts.contrasts import Contrast, Donor, digest_contrast, random_order
from lit_attr.facts.table.building import TABLE_SCHEMA
from lit_attr.facts.table.contrast_table import ContrastTable
from lit_attr.facts.table.keys import hash_keys


@pytest.fixture
def contrasts(sample_contrasts: list[Contrast]) -> list[Contrast]:
    """With ids of both kinds, a donor, and a relation that is not Unicode text."""
    first, second, third, *others = sample_contrasts[:60]
    return [
        first._replace(fact=first.fact._replace(id="one")),
        second._replace(donor=Donor("x", second.token_ids)),
        third._replace(donor=Donor(4, third.token_ids), fact=third.fact._replace(relation="\ud800 {}")),
        *others,
    ]


@pytest.fixture(params=["memory", "file"])
def table(request: pytest.FixtureRequest, contrasts: list[Contrast], tmp_path: Path) -> ContrastTable:
    table = ContrastTable.of(contrasts)
    if request.param == "memory":
        return table
    with pa.OSFile(str(tmp_path / "table.arrow"), "wb") as sink, pa.ipc.new_stream(sink, TABLE_SCHEMA) as writer:
        for batch in table._batches:
            for begin in range(0, batch.num_rows, 7):
                writer.write_batch(batch.slice(begin, 7))
    return ContrastTable.mapped(tmp_path / "table.arrow", table.content())


def test_is_the_sequence_that_it_was_made_of(table: ContrastTable, contrasts: list[Contrast]):
    assert table == contrasts and [*table] == contrasts and len(table) == len(contrasts)
    assert table[2] == contrasts[2] and table[-1] == contrasts[-1]
    assert table[3:40:5] == contrasts[3:40:5] and table[100:] == []
    assert table != contrasts[1:] and table != [*contrasts[:-1], contrasts[0]]
    assert contrasts[5] in table and table.index(contrasts[5]) == 5
    with pytest.raises(IndexError):
        table[len(contrasts)]


def test_rows_are_in_the_order_of_lengths(table: ContrastTable, contrasts: list[Contrast]):
    in_order = sorted(contrasts, key=lambda each: -len(each.token_ids))
    assert table.at(table.places_N * 0 + range(len(contrasts))) == in_order
    assert table.lengths_N.tolist() == [len(each.token_ids) for each in in_order]
    assert table.differs_N.tolist() == [each.is_contrastive for each in in_order]
    assert table.digests_N.tolist() == [digest_contrast(each) for each in in_order]
    assert (table.keys_N2 == hash_keys(each.key for each in in_order)).all()
    assert table.at(table.rows_N[[9, 1, 9, 30]]) == [contrasts[at] for at in (9, 1, 9, 30)]
    assert [*table.keys()] == [each.key for each in contrasts]


def test_finds_keys(table: ContrastTable, contrasts: list[Contrast]):
    wanted = [contrasts[4].key, ("absent", 0), contrasts[0].key]
    assert sorted(each.key[1:] for each in table.at(table.find(wanted))) == sorted(
        key[1:] for key in (contrasts[4].key, contrasts[0].key)
    )
    assert table.mask(wanted).sum() == 2
    assert not table.mask([]).any()


@pytest.mark.parametrize("seed", [0, 5])
def test_has_the_random_order_of_a_seed(table: ContrastTable, contrasts: list[Contrast], seed: int):
    order = random_order([each.key for each in contrasts if each.is_contrastive], seed)
    for _ in range(2):
        assert [each.key for each in table.at(table.random_order(seed))] == order
    # A mapped table keeps it beside its file; one that does not fit is worked out again.
    for path in table._path.parent.glob("order-*.npy") if table._path is not None else ():
        path.write_bytes(path.read_bytes()[:-4])
        again = pickle.loads(pickle.dumps(table))
        assert [each.key for each in again.at(again.random_order(seed))] == order


def test_can_be_sent_to_another_process(table: ContrastTable, contrasts: list[Contrast]):
    sent = pickle.dumps(table)
    assert pickle.loads(sent) == contrasts
    if table._path is not None:
        assert len(sent) < 1000


def test_the_content_follows_every_part_of_a_contrast(contrasts: list[Contrast]):
    first = contrasts[0]
    others = [
        first._replace(step=7),
        first._replace(token_ids=(*first.token_ids[:-1], 1)),
        first._replace(true_token_id=first.true_token_id + 1),
        first._replace(fact=first.fact._replace(target_false=" Rome!")),
        first._replace(donor=Donor(1, first.token_ids)),
    ]
    contents = {ContrastTable.of([each, *contrasts[1:]]).content() for each in [first, *others]}
    assert len(contents) == len(others) + 1
    whole = ContrastTable.of(contrasts)
    assert whole.content(7) == ContrastTable.of(contrasts[:7]).content() != whole.content()
    # A relation alone asks nothing else of the model.
    renamed = first._replace(fact=first.fact._replace(relation="other"))
    assert ContrastTable.of([renamed, *contrasts[1:]]).content() == whole.content()
