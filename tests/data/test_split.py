from __future__ import annotations

import json
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasam.errors import UserError
from deltasam.lab.data import load_data
from deltasam.lab.data.split import SPLIT_SEED, split_rows, stratified_order

LABELS = ["a"] * 600 + ["b"] * 300 + ["c"] * 97 + ["d"] * 3


@pytest.fixture
def skewed(write):
    lines = "".join(f"text {row},{label}\n" for row, label in enumerate(LABELS))
    return write("skewed.csv", "text,label\n" + lines)


def shares(split) -> Counter:
    return Counter(split["label"])


@given(groups=st.lists(st.integers(0, 4), min_size=1, max_size=60), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_any_beginning_of_the_order_is_in_proportion(groups, seed, data):
    order = stratified_order(groups, seed)
    assert sorted(order) == list(range(len(groups)))
    classes = Counter(groups)
    size = data.draw(st.integers(len(classes), len(groups)))
    taken = Counter(groups[row] for row in order[:size])
    assert set(taken) == set(classes)
    # A common cut t exists with t * n rows of each class, rounded up or down.
    lowest = max((taken[c] - 1) / n for c, n in classes.items())
    highest = min(taken[c] / n for c, n in classes.items())
    assert lowest <= highest


@pytest.mark.parametrize(
    ("eval_size", "count"), [(0.2, 200), (0.35, 350), (1 / 3, 333), (0.2999, 300), (100, 100), (4, 4)]
)
def test_split_sizes_and_proportions(skewed, eval_size, count):
    data = load_data(skewed, eval_size=eval_size)
    assert (len(data.train), len(data.evaluation)) == (1000 - count, count)
    for label, total in Counter(LABELS).items():
        found = shares(data.evaluation)[data.label_names.index(label)]
        assert abs(found - total * count / 1000) <= 2
    assert set(shares(data.evaluation)) == set(shares(data.train)) == {0, 1, 2, 3}


def test_the_splits_are_a_partition_in_source_order(skewed, examples):
    data = load_data(skewed)
    found = examples(data)
    assert sorted(found) == list(range(1000))
    assert all(found[row]["text"] == f"text {row}" and found[row]["label"] == LABELS[row] for row in found)
    for split in (data.train, data.evaluation):
        assert split["row"][:] == sorted(split["row"])


def test_the_split_is_the_same_each_time_and_random(skewed):
    data, again = load_data(skewed), load_data(skewed)
    assert data.evaluation[:] == again.evaluation[:]
    assert data.fingerprint == again.fingerprint
    gaps = [b - a for a, b in zip(data.evaluation["row"], data.evaluation["row"][1:], strict=False)]
    assert len(set(gaps)) > 5


def test_a_second_file_is_the_evaluation_split(skewed, write):
    data = load_data(skewed, eval_data=write("b.csv", "text,label\nx,a\ny,c\n"))
    assert len(data.train) == 1000
    assert data.evaluation[:] == {"text": ["x", "y"], "label": [0, 2], "row": [0, 1]}


def test_the_same_file_twice(skewed, complaint):
    assert "both --data and --eval-data" in complaint(skewed, eval_data=skewed)


def test_missing_evaluation_file(skewed, complaint, tmp_path):
    assert "gone.csv: no such file" in complaint(skewed, eval_data=tmp_path / "gone.csv")


@pytest.mark.parametrize("eval_size", [0, -1, -0.5, 1.5, float("nan"), float("inf")])
def test_impossible_eval_size(skewed, complaint, eval_size):
    assert "give a fraction between 0 and 1, or a whole number" in complaint(skewed, eval_size=eval_size)


@pytest.mark.parametrize("eval_size", [1000, 997, 3, 0.001, 0.999, 5000])
def test_eval_size_that_leaves_no_room_for_every_class(skewed, complaint, eval_size):
    message = complaint(skewed, eval_size=eval_size)
    assert "--eval-size" in message
    assert "give from 4 to 996" in message


def test_eval_size_that_takes_every_row_of_a_class(skewed, complaint):
    assert "leaves no training row with label 'd'; make it smaller" in complaint(skewed, eval_size=0.9)


def test_a_class_of_one_row_cannot_be_split(write, complaint):
    path = write("a.csv", "text,label\nu,a\nv,a\nw,b\nx,b\ny,c\n")
    message = complaint(path)
    assert "only one row has label 'c'" in message
    assert "--eval-data" in message
    held_out = write("b.csv", "text,label\nz,a\n")
    assert load_data(path, eval_data=held_out).label_names == ("a", "b", "c")


def test_take_is_reproducible_stratified_and_leaves_evaluation_alone(skewed):
    data = load_data(skewed)
    part = data.take(80, seed=3)
    assert part.train[:] == data.take(80, seed=3).train[:]
    assert part.train["row"][:] != data.take(80, seed=4).train["row"][:]
    assert len(part.train) == 80
    assert set(part.train["row"]) < set(data.train["row"])
    assert all(abs(shares(part.train)[c] - shares(data.train)[c] / 10) < 4 for c in range(4))
    assert part.evaluation[:] == data.evaluation[:]
    assert part.fingerprint not in (data.fingerprint, data.take(80, seed=4).fingerprint)


def test_take_everything_and_one_of_each(skewed):
    data = load_data(skewed)
    assert data.take(800, seed=0).fingerprint == data.fingerprint
    assert sorted(data.take(4, seed=0).train["label"]) == [0, 1, 2, 3]


def test_a_smaller_part_is_within_a_larger(skewed):
    data = load_data(skewed)
    assert set(data.take(50, seed=1).train["row"]) < set(data.take(51, seed=1).train["row"])


@pytest.mark.parametrize("size", [801, 3, 0, -5])
def test_take_an_impossible_size(skewed, size):
    with pytest.raises(UserError, match=f"--train-size {size} is impossible; give from 4 .* to 800"):
        load_data(skewed).take(size, seed=0)


def test_take_of_scores(write):
    lines = "".join(f"text {row},{row / 8}\n" for row in range(100))
    data = load_data(write("a.csv", "text,label\n" + lines), task="regression")
    assert len(data.take(1, seed=0).train) == 1
    assert data.take(30, seed=0).train["row"][:] != sorted(data.train["row"])[:30]


@pytest.mark.parametrize(("old", "new"), [("text 1,b", "text 1!,b"), ("text 1,b", "text 1,a"), (",b", ",z")])
def test_the_fingerprint_changes_with_the_content(write, csv_text, old, new):
    before = load_data(write("a.csv", csv_text))
    assert (
        before.fingerprint
        != load_data(write("b.csv", csv_text.replace(old, new, 1 if old != ",b" else -1))).fingerprint
    )


@given(groups=st.lists(st.sampled_from("abc"), min_size=6, max_size=60), share=st.floats(0.05, 0.95))
def test_without_repeated_texts_the_split_is_the_beginning_of_the_order(groups, share):
    try:
        train, evaluation = split_rows("a", groups, share, range(len(groups)))
    except UserError:
        return
    order = stratified_order(groups, SPLIT_SEED)
    count = round(share * len(groups))
    assert (train, evaluation) == (sorted(order[count:]), sorted(order[:count]))


@given(
    rows=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 15)), min_size=8, max_size=60),
    share=st.floats(0.1, 0.6),
)
def test_no_text_is_on_both_sides(rows, share):
    groups, texts = map(list, zip(*rows, strict=True))
    try:
        train, evaluation = split_rows("a", groups, share, texts)
    except UserError:
        return
    assert sorted(train + evaluation) == list(range(len(rows)))
    assert evaluation
    assert not {texts[row] for row in train} & {texts[row] for row in evaluation}
    assert {groups[row] for row in train} == set(groups)
    held = defaultdict(set)
    for group, text in rows:
        held[group].add(text)
    if all(len({group for group, other in rows if other == text}) == 1 for _, text in rows):  # labels that agree
        assert {groups[row] for row in evaluation} == {group for group in held if len(held[group]) > 1}
        largest = Counter(texts).most_common(1)[0][1]
        assert abs(len(evaluation) - round(share * len(rows))) <= largest * len(held) + sum(
            groups.count(group) for group in held if len(held[group]) == 1
        )


def test_repeated_texts_keep_sizes_and_proportions(write):
    labels = ["a"] * 600 + ["b"] * 300 + ["c"] * 100
    lines = "".join(f"text {row if row % 10 else row // 50},{label}\n" for row, label in enumerate(labels))
    data = load_data(write("a.csv", "text,label\n" + lines))
    assert len(data.evaluation) == 200
    assert data.evaluation_rows_in_training == 0
    for label, total in Counter(labels).items():
        assert abs(shares(data.evaluation)[data.label_names.index(label)] - total / 5) <= 5


def test_a_few_repeated_texts_move_a_few_rows():
    groups = ["a", "b"] * 500
    texts = [row if row not in (17, 801) else 400 for row in range(1000)]
    plain, moved = (set(split_rows("a", groups, 0.2, t)[1]) for t in (range(1000), texts))
    assert len(plain ^ moved) <= 6


def test_pairs_repeat_where_both_texts_do(write):
    rows = [{"a": f"a{n % 4}", "b": f"b{n // 8}", "label": n // 4 % 2} for n in range(40)]
    path = write("a.jsonl", "\n".join(map(json.dumps, rows)))
    data = load_data(path, text="a", text_pair="b")
    pairs = [set(zip(split["text"], split["text_pair"], strict=True)) for split in (data.train, data.evaluation)]
    assert not pairs[0] & pairs[1]
    assert set(data.train["text"]) & set(data.evaluation["text"])


def test_rows_set_aside_for_selection_share_no_text(write):
    lines = "".join(f"text {row // 3},{row // 3 % 2}\n" for row in range(90))
    chosen = load_data(write("a.csv", "text,label\n" + lines)).for_selection(0.3)
    assert not set(chosen.train["text"]) & set(chosen.evaluation["text"])
    assert len(chosen.evaluation) > 10


def test_a_class_of_one_text_stays_in_training(write):
    lines = "same,a\n" * 20 + "".join(f"text {row},b\n" for row in range(20))
    data = load_data(write("a.csv", "text,label\n" + lines))
    assert shares(data.train)[0] == 20
    assert set(shares(data.evaluation)) == {1}


def test_a_class_of_one_text_stays_in_training_even_where_it_fits(write):
    lines = "same,a\n" * 2 + "".join(f"text {row},b\n" for row in range(20))
    data = load_data(write("a.csv", "text,label\n" + lines), eval_size=0.5)
    assert (shares(data.train)[0], len(data.evaluation)) == (2, 11)


def test_a_text_of_more_rows_than_the_share_of_its_class_stays_in_training():
    texts = [f"large {row // 30}" for row in range(300)] + list(range(300, 700))
    groups = ["a"] * 310 + ["b"] * 390
    _, evaluation = split_rows("a", groups, 60, texts)  # 27 of them for a
    assert len(evaluation) == 60
    assert {groups[row] for row in evaluation} == {"a", "b"}
    assert min(evaluation) >= 300


@pytest.mark.parametrize("texts", [["same", "same"], ["good", "bad"]])
def test_texts_that_cannot_be_parted(write, complaint, texts):
    path = write("a.csv", "text,label\n" + f"{texts[0]},a\n{texts[1]},b\n" * 20)
    message = complaint(path)
    assert "rows with one text stay together, and every text holds all rows of some label" in message
    assert "--eval-data" in message


def test_evaluation_rows_that_are_trained_on_are_counted(skewed, write):
    held_out = write("b.csv", "text,label\nnew,a\ntext 3,a\ntext 5,c\ntext 3,a\n")
    data = load_data(skewed, eval_data=held_out)
    assert data.evaluation_rows_in_training == 3
    assert load_data(skewed).evaluation_rows_in_training == 0
    assert data.for_selection(0.2).evaluation_rows_in_training == 0
