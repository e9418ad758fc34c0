from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer

from deltasam.lab.train.tasks.rouge import KINDS, rouge, sentences

PREDICTIONS = [
    "Council approves plans for a water park.",
    "They were released on bail. Police held two men!",
    "",
    "the the the",
    "Der Rat hat zugestimmt.",
]
REFERENCES = [
    "Proposals for an indoor water park and a hotel have been approved by councillors.",
    "Two men were arrested by police.\nBoth have been released on bail.",
    "Nothing was written about this.",
    "The end of the line?",
    "The council agreed.",
]


def test_equal_to_the_package_called_directly():
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    split = list(PREDICTIONS)
    split[1] = "They were released on bail.\nPolice held two men!"
    scores = [scorer.score(reference, prediction) for prediction, reference in zip(split, REFERENCES, strict=True)]
    found = rouge(PREDICTIONS, REFERENCES)
    assert found == {k: pytest.approx(sum(s[k].fmeasure for s in scores) / 5, abs=1e-12) for k in KINDS}
    assert 0 < found["rouge2"] < found["rougeL"] < found["rougeLsum"] < found["rouge1"] < 1


def test_by_hand():
    found = rouge(["The dog sat. The cats ran"], ["the cat ran\nthe dog sat down"])
    # Stemmed: "the dog sat the cat ran" (6 words) and "the cat ran the dog sat down" (7). All 6 words are matched:
    # precision 6/6, recall 6/7. Of 5 and 6 pairs "the dog", "dog sat", "the cat", "cat ran" are common.
    # Longest common subsequence over the whole texts: "the dog sat" or "the cat ran", 3 words; by sentences all 6.
    assert found == {
        "rouge1": pytest.approx(2 * 6 / (6 + 7)),
        "rouge2": pytest.approx(2 * 4 / (5 + 6)),
        "rougeL": pytest.approx(2 * 3 / (6 + 7)),
        "rougeLsum": pytest.approx(2 * 6 / (6 + 7)),
    }


def test_equal_to_torchmetrics():
    from torchmetrics.functional.text import rouge_score

    keys = ("rouge1", "rouge2", "rougeL")  # its rougeLsum needs a download
    theirs = rouge_score(PREDICTIONS, REFERENCES, use_stemmer=True, rouge_keys=keys, accumulate="avg")
    ours = rouge(PREDICTIONS, REFERENCES)
    assert {k: ours[k] for k in keys} == {k: pytest.approx(float(theirs[f"{k}_fmeasure"]), abs=1e-6) for k in keys}


def test_sentences():
    assert sentences("One. Two!  Three? v1.5 four") == "One.\nTwo!\nThree?\nv1.5 four"
    assert sentences(" A line. With two sentences\nAnother. ") == "A line. With two sentences\nAnother."
