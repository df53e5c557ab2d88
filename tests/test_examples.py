"""The programs of `examples` learn something, on one device and on a mesh alike."""

import re

import pytest

pytest.importorskip("optax")

from examples import language_model, recommender

pytestmark = pytest.mark.usefixtures("jax_defaults")  # Optax promotes


def printed(capsys, main, *arguments: object) -> str:
    assert main([str(x) for x in arguments]) == 0
    return capsys.readouterr().out


def numbers(text: str, word: str) -> list[float]:
    return [float(x) for x in re.findall(rf"{word} ([\d.]+)", text)]


def test_a_recommender_finds_more_than_the_best_sellers(capsys):
    sizes = ("--items", 500, "--users", 512, "--batch", 128, "--epochs", 4, "--width", 8)
    text = printed(capsys, recommender.main, "--model", 4, *sizes)
    best = float(re.findall(r"best sellers: ([\d.]+)", text)[0])
    losses, recall = numbers(text, "loss"), numbers(text, "recall")
    assert losses[-1] < losses[0] and recall[-1] > 2 * best
    alone = printed(capsys, recommender.main, "--model", 1, *sizes)
    assert numbers(alone, "loss")[0] == pytest.approx(losses[0], rel=0.01)  # sums in another order, printed


def test_a_language_model_learns_on_a_mesh_as_on_one_device(capsys):
    sizes = ("--bytes", 1500, "--microbatch", 512, "--steps", 20)
    text = printed(capsys, language_model.main, "--model", 4, *sizes)
    accuracy = numbers(text, "accuracy")
    assert accuracy[-1] > accuracy[0] + 0.2
    tokens, padded = map(int, re.findall(r"(\d+) tokens, a head of (\d+)", text)[0])
    assert tokens < padded and padded % 128 == 0
    alone = printed(capsys, language_model.main, "--model", 1, *sizes)
    assert numbers(alone, "loss")[0] == pytest.approx(numbers(text, "loss")[0], rel=0.01)  # as above


@pytest.mark.parametrize("module", [language_model, recommender], ids=lambda module: module.__name__)
def test_their_help_says_what_they_are(module, capsys):
    with pytest.raises(SystemExit):
        module.main(["--help"])
    assert module.__doc__.partition("\n")[0].partition(": ")[2] in " ".join(capsys.readouterr().out.split())
