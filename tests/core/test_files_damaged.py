"""Damaged and hostile files: every cut, every flipped bit, and headers that claim what is not there."""

import json
import os
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from injected import held

import sparsembed as se
from sparsembed.storage import DamagedError, container, saving


def made():
    table = se.EmbeddingTable(7, 3, se.PartialRowwiseAdam(lr=0.125), padding_idx=2, rng=4)
    table.update([1, 2, 5], np.ones((3, 3), np.float32))
    return table


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a file, and a path to write others to."""
    path = tmp_path_factory.mktemp("damaged") / "table.safetensors"
    made().save(path)
    return path.read_bytes(), path


def outcome(path, raw):
    """Load bytes; return the table, or the error, which must be of one of the promised kinds."""
    path.write_bytes(raw)
    found = None
    try:
        return se.load(path)
    except ValueError as error:
        found = error
    assert str(path) in str(found)
    return found


def split(raw):
    """The header and the data of a file."""
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def joined(header, data, about=None):
    """A file of a header and data, with the right checksum of whatever the header says."""
    if about is not None:
        text = json.dumps({"header_crc32": "0" * 8, **about}, separators=(",", ":"))
        header = {**header, "__metadata__": {"sparsembed": text}}
    raw = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % 64)
    first = len(raw).to_bytes(8, "little") + raw
    digits = f"{zlib.crc32(first):08x}".encode()
    return first.replace(b'header_crc32\\":\\"00000000', b'header_crc32\\":\\"' + digits) + data


def about_of(header):
    about = json.loads(header["__metadata__"]["sparsembed"])
    del about["header_crc32"]
    return about


def test_the_helpers_of_these_tests_make_good_files(whole):
    raw, path = whole
    header, data = split(raw)
    assert held(outcome(path, joined(header, data, about_of(header)))) == held(made())


def test_every_cut_is_refused(whole):
    raw, path = whole
    for size in range(len(raw)):
        assert isinstance(outcome(path, raw[:size]), DamagedError), size


def test_every_flipped_bit_is_refused_or_in_padding(whole):
    raw, path = whole
    header, data = split(raw)
    start = len(raw) - len(data)
    padding = set()
    for name, entry in header.items():
        if name.startswith("__padding"):
            padding |= set(range(*(start + each for each in entry["data_offsets"])))
    assert padding
    for place in range(len(raw)):
        for bit in range(8):
            changed = bytearray(raw)
            changed[place] ^= 1 << bit
            found = outcome(path, bytes(changed))
            if place in padding:
                assert held(found) == held(made()), (place, bit)
            else:
                assert isinstance(found, ValueError), (place, bit)


def test_bytes_behind_the_end_are_refused(whole):
    raw, path = whole
    assert isinstance(outcome(path, raw + b"\0"), DamagedError)


@given(data=st.data())
def test_changed_bytes_are_refused_or_in_padding(data, whole):
    raw, path = whole
    changed = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 5))):
        changed[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    found = outcome(path, bytes(changed))
    assert isinstance(found, ValueError) or held(found) == held(made())


@given(raw=st.binary(max_size=200))
def test_any_bytes_are_refused(raw, whole):
    assert isinstance(outcome(whole[1], raw), DamagedError)


@given(text=st.text(max_size=60), length=st.integers(0, 2**64 - 1))
def test_any_text_is_no_header(text, length, whole):
    raw = text.encode()
    for first in (len(raw), length):
        assert isinstance(outcome(whole[1], first.to_bytes(8, "little") + raw), ValueError)


def test_data_without_checksums_kept_are_found_when_asked(whole):
    """`verify=False` reads what is there; headers are checked all the same."""
    raw, path = whole
    header, data = split(raw)
    begin, _ = header["weight"]["data_offsets"]
    changed = bytearray(raw)
    changed[len(raw) - len(data) + begin] ^= 1
    path.write_bytes(changed)
    with pytest.raises(DamagedError, match=r"the checksum of weight, rows 0 to 6, is wrong"):
        se.load(path)
    assert held(se.load(path, verify=False)) != held(made())
    changed = bytearray(raw)
    changed[40] ^= 1
    path.write_bytes(changed)
    with pytest.raises(ValueError):  # noqa: PT011  (whatever it hits)
        se.load(path, verify=False)


# ---------------------------------------------------------------------- right checksums, wrong claims

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(
        [0, 1, 7, 2**31 - 1, 2**63 - 1, 2**63, 1e308, "Adam", "SGD", "Rule", "inf", "weight", "F32", "U8"]
    )
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    """All places within JSON."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from places(each, (*path, key))


def changed_at(value, path, new):
    if not path:
        return new
    found = dict(value) if isinstance(value, dict) else list(value)
    found[path[0]] = changed_at(value[path[0]], path[1:], new)
    return found


@settings(max_examples=400)
@given(data=st.data())
def test_a_header_that_says_anything_is_refused_or_loads(data, whole):
    raw, path = whole
    header, rest = split(raw)
    about = about_of(header)
    new = data.draw(VALUES)
    if data.draw(st.booleans()):
        where = data.draw(st.sampled_from([each for each in places(about) if each]))
        about = changed_at(about, where, new)
    else:
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        header = changed_at(entries, data.draw(st.sampled_from([each for each in places(entries) if each])), new)
    found = outcome(path, joined(header, rest, about))
    if not isinstance(found, ValueError):  # what is allowed to be another: hyperparameters, seed, options
        assert found.weight.shape == (7, 3)
        found.update([1], np.ones((1, 3), np.float32)) if found.optimizer == made().optimizer else None


HEADERS = {
    "not JSON": b"{",
    "not a dict": b"[1, 2]",
    "not UTF-8": b'{"\xff": 1}',
    "twice": b'{"weight": 1, "weight": 1}',
    "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "NaN": b'{"a": NaN}',
    "many digits": b'{"a": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("name", HEADERS)
def test_what_is_no_header(name, whole):
    found = outcome(whole[1], joined(HEADERS[name], b""))
    assert isinstance(found, DamagedError)


def test_names_that_stand_there_twice(whole):
    raw, path = whole
    header, data = split(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    entry = b'"step":' + json.dumps(header["step"], separators=(",", ":")).encode()
    found = outcome(path, joined(text[:-1] + b"," + entry + b"}", data))
    assert isinstance(found, DamagedError)
    assert "'step' stands there twice" in str(found)


def entries_with(header, **changes):
    return {**header, **{name: {**header[name], **change} for name, change in changes.items()}}


TENSORS = {
    "negative offset": {"weight": {"data_offsets": [-84, 0]}},
    "a bool": {"step": {"shape": [True]}},
    "a float": {"weight": {"shape": [7.0, 3]}},
    "overlap": {"exp_avg": {"data_offsets": [0, 84]}},
    "a larger claim": {"weight": {"shape": [10**15, 3]}},
    "a larger claim, with offsets": {"weight": {"shape": [10**15, 3], "data_offsets": [0, 12 * 10**15]}},
    "a product that overflows": {"weight": {"shape": [2**62, 2**62, 2**62]}},
    "a dtype that there is not": {"weight": {"dtype": "F33"}},
    "no shape": {"weight": {"shape": None}},
    "three offsets": {"weight": {"data_offsets": [0, 84, 84]}},
}


@pytest.mark.parametrize("name", TENSORS)
def test_entries_that_do_not_fit_the_file(name, whole):
    raw, path = whole
    header, data = split(raw)
    found = outcome(path, joined(entries_with(header, **TENSORS[name]), data, about_of(header)))
    assert isinstance(found, DamagedError)


ABOUT = {
    "newer": ({"format": 2}, "has format 2, and this"),
    "another kind": ({"kind": "group"}, "holds a 'group'"),
    "an unknown option": ({"options": {"rounding": "exact"}}, "its options are"),
    "padding out of range": ({"options": {"padding_idx": 7}}, "padding_idx must be below num_rows"),
    "no optimizer": ({"optimizer": None}, "missing or left over"),
    "a class that there is not": (
        {"optimizer": {"class": "os.system", "slots": ["exp_avg"], "row_slots": ["exp_avg_sq"]}},
        "pass optimizer=",
    ),
    "other slots": (
        {
            "optimizer": {
                "class": "SGD",
                "hyperparameters": {"lr": 1},
                "slots": ["exp_avg"],
                "row_slots": ["exp_avg_sq"],
            }
        },
        "its SGD",
    ),
    "a seed of 65 bits": ({"seed": str(2**64)}, "its seed must be"),
    "a seed that is no text": ({"seed": 4}, "its seed must be"),
    "no checksums": ({"checksums": None}, "verify=False"),
}


@pytest.mark.parametrize("name", ABOUT)
def test_claims_about_the_table(name, whole):
    raw, path = whole
    header, data = split(raw)
    change, match = ABOUT[name]
    found = outcome(path, joined(header, data, about_of(header) | change))
    assert isinstance(found, ValueError)
    assert match in str(found)


def test_hyperparameters_out_of_range(whole):
    raw, path = whole
    header, data = split(raw)
    about = about_of(header)
    for change in ({"lr": -1}, {"betas": [0.9]}, {"betas": [[0], 1]}, {"eps": "x"}, {"more": 1}, {"lr": {"a": 1}}):
        optimizer = about["optimizer"] | {"hyperparameters": about["optimizer"]["hyperparameters"] | change}
        assert isinstance(outcome(path, joined(header, data, about | {"optimizer": optimizer})), ValueError), change


def test_state_that_no_training_leaves(whole):
    """Negative sums of squares, and steps below zero; with the right checksums."""
    path = whole[1]
    table = made()
    table._contents.row_state[3] = -1
    table.save(path)
    with pytest.raises(ValueError, match="sums squares, so it must not be negative"):
        se.load(path)
    table = made()
    table._contents.steps[0] = -5
    table.save(path)
    with pytest.raises(ValueError, match="step"):
        se.load(path)


def test_a_file_that_is_cut_off_while_it_is_read(whole, monkeypatch):
    raw, path = whole
    path.write_bytes(raw)
    read = container.read_header

    def cutting(file, name):
        found = read(file, name)
        os.truncate(path, len(raw) - 50)
        return found

    monkeypatch.setattr(container, "read_header", cutting)
    with pytest.raises(DamagedError, match="was cut off while it was read"):
        se.load(path)


@pytest.mark.parametrize("claim", ["header", "weight", "rows"])
def test_nothing_is_allocated_for_a_claim(claim, whole):
    raw, path = whole
    header, data = split(raw)
    about = about_of(header)
    if claim == "header":
        bad = (10**8).to_bytes(8, "little") + raw[8:]
    elif claim == "weight":
        bad = joined(entries_with(header, weight={"shape": [10**12, 3], "data_offsets": [0, 12 * 10**12]}), data, about)
    else:
        bad = joined(header, data, about | {"checksums": about["checksums"] | {"rows": 2**62}})
    outcome(path, bad)
    tracemalloc.start()
    try:
        outcome(path, bad)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_slot_cannot_be_the_weight(whole):
    """Names of slots come from the file: two of one name, or one that is not there."""
    raw, path = whole
    header, data = split(raw)
    about = about_of(header)
    for change in (
        {"slots": ["weight"]},
        {"slots": ["exp_avg_sq"]},
        {"slots": ["exp_avg", "more"]},
        {"row_slots": "x"},
    ):
        found = outcome(path, joined(header, data, about | {"optimizer": about["optimizer"] | change}))
        assert isinstance(found, ValueError), change


def test_blocks_are_summed_apart(whole, monkeypatch):
    """A flipped bit in the last block names its rows."""
    monkeypatch.setattr(saving, "BLOCK", 2 * 3 * 4)
    path = whole[1]
    made().save(path)
    raw = bytearray(path.read_bytes())
    header, data = split(bytes(raw))
    raw[len(raw) - len(data) + header["exp_avg"]["data_offsets"][1] - 1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DamagedError, match="exp_avg, rows 6 to 6,"):
        se.load(path)
