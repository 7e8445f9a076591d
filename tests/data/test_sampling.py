"""What `limit` keeps: a sample by seed, in order, the same however it is asked for, and even over the source."""

from itertools import count, islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from preparing import bert, questions, sentence

from bertjax.config.schema.data import SpanQa, Task, TextToText
from bertjax.config.schema.sources import SquadFiles
from bertjax.data.jobs.job_plan import PrepareContext
from bertjax.data.preprocess.sampling import sample_indices, sample_items
from bertjax.data.preprocess.span_qa import plan_qa
from bertjax.data.preprocess.text_to_text import read_examples
from bertjax.data.sources.squad import read_squad


@given(st.integers(0, 300), st.none() | st.integers(1, 320), st.integers(0, 2**40))
def test_a_sample_is_in_order_and_grows_with_the_limit(size: int, limit: int | None, seed: int):
    found = list(sample_items(range(size), limit, seed))
    assert found == sorted(set(found)) and len(found) == min(size, limit or size)
    assert sample_indices(size, limit, seed).tolist() == found
    assert set(found) <= set(sample_items(range(size), None if limit is None else limit + 1, seed))


def test_every_record_is_as_likely_as_another():
    """Of 20 records 5, by 4,000 seeds: each in a quarter of the samples (binomial, +- 5 standard deviations)."""
    times = np.zeros(20)
    for seed in range(4000):
        times[sample_indices(20, 5, seed)] += 1
    assert np.abs(times - 1000).max() < 5 * np.sqrt(4000 * 0.25 * 0.75)


def test_records_that_cannot_be_compared_and_a_stream_without_limit():
    assert list(islice(sample_items(({"a": n} for n in count()), None, 0), 2)) == [{"a": 0}, {"a": 1}]
    assert len(list(sample_items([{"a": 1}] * 50, 3, 0))) == 3


def test_questions_are_sampled_alike_for_every_kind_of_row(tmp_path):
    """Windows, text to text and answers to score: `limit` counts questions, and keeps the same ones by one seed."""
    (tmp_path / "squad.json").write_text(questions(np.random.default_rng(0), 30, sentence))
    source = SquadFiles(files=["squad.json"])
    ids = [q.id for q in sample_items(read_squad(source, tmp_path), 12, 7)]
    assert len(ids) == 12
    spans = Task(source=source, preprocess=SpanQa(sequence_length=64, doc_stride=16, max_query_length=12), limit=12)
    work = PrepareContext(spans, "t", bert(), 7, tmp_path, tmp_path, 1, None, print)
    plan = plan_qa(work)
    assert [q.id for job in plan.arguments for q in job] == ids and plan.facts["questions"] == 12
    asked = Task(source=source, preprocess=TextToText(prompt="squad"), limit=12)
    assert [e.extra["id"] for e in read_examples(asked, tmp_path, seed=7)] == ids
