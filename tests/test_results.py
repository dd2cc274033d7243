"""Records: named by what was asked, whole or not there, never wrong."""

import errno
import json
import math
import stat
import threading
import time
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from symprune.base import paths, records
from symprune.base.files import write_whole
from symprune.base.records import Record, Store, provenance, run_key

RUN = {
    "model": {"name": "tiny", "weights": "00ff"},
    "recipe": None,
    "calibration": None,
    "evaluation": {"seq_len": 32},
}
METRICS = {"perplexity": 12.5, "window_losses": [2.5, 2.625]}

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=6), values, max_size=3),
    max_leaves=8,
)
parts = st.dictionaries(st.text(max_size=6), plain, max_size=4)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "records")


def files(store: Store) -> dict[str, str]:
    return (
        {file.name: file.read_text() for file in store.folder.iterdir() if file.is_file()}
        if store.folder.exists()
        else {}
    )


def never() -> dict:
    raise AssertionError("measured although it was on record")


def test_the_key_of_a_question_is_the_same_on_every_machine_and_in_every_version():
    assert (
        run_key({"model": "tiny", "recipe": {"name": "ria", "alpha": 0.5}, "seeds": [0, 1], "none": None})
        == "c54696334a469260"
    )


def test_the_key_ignores_the_order_of_the_question_but_nothing_in_it():
    assert run_key({"a": 1, "b": {"c": 2, "d": 3}}) == run_key({"b": {"d": 3, "c": 2}, "a": 1})
    keys = {
        run_key(run) for run in ({}, {"a": None}, {"a": 0}, {"a": "0"}, {"a": [0]}, {"a": [[0]]}, {"b": 0})
    }
    assert len(keys) == 7


def test_a_new_protocol_asks_every_question_anew(store, monkeypatch):
    store.get_or_run(RUN, lambda: METRICS)
    monkeypatch.setattr(records, "PROTOCOL", records.PROTOCOL + 1)
    assert store.get(RUN) is None
    assert store.get_or_run(RUN, lambda: {"perplexity": 1.0}).metrics == {"perplexity": 1.0}
    assert len(files(store)) == 2


@given(parts, parts, parts)
@settings(max_examples=60)
def test_a_record_is_read_back_as_it_was_written(run, metrics, meta):
    record = Record(run, metrics, meta)
    again = Record.from_json(record.to_json())
    assert (again, again.key) == (record, record.key)
    assert again.to_json() == record.to_json()


def test_what_is_on_record_is_not_measured_again(store):
    first = store.get_or_run(RUN, lambda: METRICS)
    assert store.get_or_run(json.loads(json.dumps(RUN)), never) == first
    assert Store(store.folder).get(RUN) == first
    assert list(store) == [first]
    assert list(files(store)) == [f"{run_key(RUN)}.json"]


def test_a_question_not_asked_yet_has_no_record(store):
    assert store.get(RUN) is None
    assert list(store) == []
    assert not store.folder.exists()


def test_a_failed_measurement_leaves_the_folder_as_it_was(store):
    store.get_or_run(RUN, lambda: METRICS)
    before = files(store)

    def fail() -> dict:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        store.get_or_run({**RUN, "recipe": "another"}, fail)
    with pytest.raises(ValueError, match="JSON"):
        store.get_or_run({**RUN, "recipe": "another"}, lambda: {"perplexity": math.nan})
    assert files(store) == before


def test_a_failed_write_leaves_the_former_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_whole(file, "former")

    def fail(*_) -> None:
        raise OSError("disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(records.os, "replace", fail)
        with pytest.raises(OSError, match="disk is full"):
            write_whole(file, "new")
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "half of it \ud800")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "former"}


def test_a_written_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").write_text("")
    write_whole(tmp_path / "whole", "± in any locale")
    assert stat.S_IMODE((tmp_path / "whole").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain").stat().st_mode
    )
    assert (tmp_path / "whole").read_bytes() == "± in any locale".encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"run": {}, "metrics": {}}',
        b'{"run": {}, "metrics": {}, "meta": {}, "more": {}}',
        b'{"run": [], "metrics": {}, "meta": {}}',
        b'{"run": {"a": NaN}, "metrics": {}, "meta": {}}',
        Record({"another": "question"}, METRICS, {}).to_json().encode(),
    ],
    ids=lambda content: content[:45].decode(errors="replace"),
)
def test_a_corrupt_or_foreign_record_is_set_aside_with_a_warning_and_measured_again(store, content):
    store.folder.mkdir(parents=True)
    file = store.folder / f"{run_key(RUN)}.json"
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=rf"record {file.name} is corrupt .* measured again"):
        record = store.get_or_run(RUN, lambda: METRICS)
    assert record.metrics == METRICS
    assert file.with_suffix(".corrupt").read_bytes() == content
    assert store.get_or_run(RUN, never) == record


def test_a_corrupt_record_is_left_out_when_all_are_read(store):
    kept = store.get_or_run(RUN, lambda: METRICS)
    (store.folder / "0123456789abcdef.json").write_text("junk")
    with pytest.warns(UserWarning, match="corrupt"):
        assert list(store) == [kept]


@given(st.integers(0, 10_000))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_truncated_record_is_refused_or_whole(tmp_path, position):
    record = Record(RUN, METRICS, {"versions": {"torch": "2"}})
    store = Store(tmp_path / "records")
    file = store.folder / f"{record.key}.json"
    store.put(record)
    text = file.read_text()
    file.write_text(text[: position % len(text)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert store.get(RUN) in (None, record)


@given(st.text(max_size=60) | plain.map(json.dumps))
@settings(max_examples=60)
def test_only_records_are_read_as_records(text):
    with pytest.raises(ValueError, match=r"(?s).*"):
        Record.from_json(text)


def test_a_record_says_where_it_came_from():
    meta = provenance()
    assert {"symprune", "torch", "transformers", "tokenizers", "numpy"} <= meta["versions"].keys()
    assert meta["machine"]
    assert meta["python"].startswith("3.")
    assert meta["git"] is None or (
        len(meta["git"]["commit"]) == 40 and isinstance(meta["git"]["dirty"], bool)
    )
    json.dumps(meta)


# Damage and concurrency (processes that are killed: test_chaos.py).


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_changed_byte_of_a_record_is_noticed_or_changes_nothing(tmp_path, data):
    record = Record(
        RUN, {"perplexity": 12.5, "window_losses": [2.5, 2.625], "n": 10}, {"versions": {"torch": "2"}}
    )
    store = Store(tmp_path / "records")
    file = store.folder / f"{record.key}.json"
    store.put(record)
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert store.get(RUN) in (None, record)


def test_a_changed_digit_of_a_metric_is_measured_again(store):
    store.get_or_run(RUN, lambda: METRICS)
    (file,) = store.folder.glob("*.json")
    file.write_text(file.read_text().replace("12.5", "11.5"))
    with pytest.warns(UserWarning, match="its content is not what its checksum says"):
        assert store.get_or_run(RUN, lambda: METRICS).metrics == METRICS


def test_records_from_before_there_were_checksums_are_read(store):
    record = Record(RUN, METRICS, {})
    store.folder.mkdir()
    (store.folder / f"{record.key}.json").write_text(json.dumps(vars(record)))
    assert store.get(RUN) == record


def test_published_records_are_read_and_written_with_checksums(tmp_path):
    published = records.read_lines(paths.results("cpu") / "records.jsonl")
    assert published
    records.write_lines(tmp_path / "again.jsonl", published.values())
    assert records.read_lines(tmp_path / "again.jsonl") == published
    text = (tmp_path / "again.jsonl").read_text()
    (tmp_path / "again.jsonl").write_text(text.replace('"perplexity":2', '"perplexity":1', 1))
    with pytest.raises(ValueError, match="checksum"):
        records.read_lines(tmp_path / "again.jsonl")


def test_a_full_disk_loses_nothing_that_was_finished(store, monkeypatch):
    kept = store.get_or_run(RUN, lambda: METRICS)
    before = files(store)
    real = records.os.fdopen

    def full(*args, **options):
        f = real(*args, **options)

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                f.close()

            def write(self, content):
                f.write(content[: len(content) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")

        return Full()

    with monkeypatch.context() as patch:
        patch.setattr(records.os, "fdopen", full)
        with pytest.raises(OSError, match="No space left"):
            store.get_or_run({**RUN, "recipe": "another"}, lambda: METRICS)
    assert files(store) == before
    assert store.get_or_run(RUN, never) == kept
    assert store.get_or_run({**RUN, "recipe": "another"}, lambda: METRICS).metrics == METRICS


def test_who_waited_for_another_takes_its_answer(store):
    measured, barrier = [], threading.Barrier(4)

    def measure() -> dict:
        measured.append(1)
        time.sleep(0.1)
        return METRICS

    def ask() -> None:
        barrier.wait()
        assert Store(store.folder).get_or_run(RUN, measure).metrics == METRICS

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert measured == [1]
