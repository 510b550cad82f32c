"""Learning curves: the mean over the seeds after each epoch, in text and drawn; nothing where none was kept."""

import pytest

from cmbert.transfer.finetune.curves import curves_markdown, curves_section, mean_curve, spell_curve


def result(model: str, *seeds: list[float], task: str = "tnews") -> dict:
    curves = [{"seed": seed, "dev": [{"accuracy": value} for value in values]} for seed, values in enumerate(seeds)]
    return {"task": task, "model": model, "scores": ["accuracy"], "curves": curves}


OLD = {"task": "tnews", "model": "old", "scores": ["accuracy"]}


def test_a_curve_is_the_mean_of_the_seeds():
    assert mean_curve(result("mine", [50.0, 70.0, 60.0], [60.0, 80.0, 64.0])) == [55.0, 75.0, 62.0]
    assert mean_curve(OLD) == []
    assert mean_curve(result("half old", [50.0], [])) == []


@pytest.mark.parametrize("epochs", [1, 2, 10, 11, 50])
def test_long_curves_are_thinned_to_ten_with_both_ends(epochs):
    parts = spell_curve([float(epoch) for epoch in range(epochs)]).split(", ")
    assert len(parts) == min(epochs, 10)
    assert parts[0] == "1: 0.00"
    assert parts[-1] == f"{epochs}: {epochs - 1}.00"


def test_text_and_drawings():
    results = [OLD, result("<mine>", [50.0, 70.0]), result("other", [40.0], task="csl")]
    text = "\n".join(curves_markdown(results))
    assert "| tnews | <mine> | 1: 50.00, 2: 70.00 |" in text
    assert "last epoch is what is reported" in text
    assert "old" not in text
    page = curves_section(results)
    assert page.count("<svg") == 2
    assert "&lt;mine&gt;" in page
    assert "<mine>" not in page
    assert curves_markdown([OLD]) == []
    assert curves_section([OLD]) == ""
