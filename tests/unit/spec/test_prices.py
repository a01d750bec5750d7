"""The price file: what is absent keeps its default, and every mistake is told with its line."""

from __future__ import annotations

import pytest

from launcher.errors import LauncherError
from launcher.spec.prices import read_prices


def written(folder, text):
    path = folder / "prices.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_a_file_says_is_taken_and_the_rest_are_means(tmp_path):
    prices = read_prices(written(tmp_path, "currency: EUR\ngpu_hour: {h100-80gb: 2.4}\nco2_kg_per_kwh: 0.05\n"))
    assert (prices.currency, prices.gpu_hour, prices.co2_kg_per_kwh) == ("EUR", {"h100-80gb": 2.4}, 0.05)
    assert (prices.overhead, prices.power_share) == (1.3, 0.85)


def test_a_file_that_says_one_thing_leaves_the_rest(tmp_path):
    assert read_prices(written(tmp_path, "overhead: 1.1\n")).currency == "USD"


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(LauncherError, match=r"E101.*the price file cannot be read"):
        read_prices(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("- 2.4\n", "[2.4]: not fields by name", "write gpu_hour: {h100-80gb: 2.40}"),
        ("2.4 a GPU\n", '"2.4 a GPU": not fields by name', "write gpu_hour: {h100-80gb: 2.40}"),
        ("gpu_hour: 5\n", "gpu_hour: 5: not a price by GPU", "write {h100-80gb: 2.40}"),
        (
            "gpu_hour: {h100-80gb: 2 USD}\n",
            'gpu_hour.h100-80gb: "2 USD": input should be a valid number',
            "use a number",
        ),
        ("gpu_hour: {h100-80gb: .nan}\n", "gpu_hour.h100-80gb: .nan is not a finite number", "write a number"),
    ],
)
def test_what_is_no_price_is_one_error_and_the_hint_shows_how(tmp_path, text, what, hint):
    with pytest.raises(LauncherError) as error:
        read_prices(written(tmp_path, text))
    [problem] = error.value.problems
    assert (problem.code, problem.what) == ("E121", what)
    assert problem.hint.startswith(hint)
