import pytest

from evaluation.main_path import forecast
from evaluation.main_path.forecast import CORES, GPUS, TABULAR_SECONDS, TEST_ROWS, TRAIN_ROWS, Forecast, Recipe, forward_rate
from inference.backbones import BACKBONES

T4, P100 = GPUS
#: Decodes so fast that the GPUs decide.
FAST = 1e9


def test_every_backbone_has_a_forecast():
    assert all(forecast.known(name) for name in BACKBONES)
    assert not forecast.known("another")


def test_the_published_speed_is_that_of_its_size_and_network():
    assert forward_rate(T4, "resnet50", 224, "float32") == pytest.approx(429.83)
    assert forward_rate(T4, "resnet50", 224, "float16") == pytest.approx(995.81)
    assert forward_rate(P100, "resnet50", 224, "float32") == pytest.approx(657)
    assert forward_rate(T4, "efficientnetb0", 224, "float32") == pytest.approx(429.83 * 2829.34 / 1348.52)


def test_speed_follows_pixels_and_multiply_adds_but_small_crops_do_not_fill_a_gpu():
    whole = forward_rate(T4, "efficientnet-lite0", 224, "float32")
    assert forward_rate(T4, "efficientnet-lite0", 112, "float32") == pytest.approx(4 * whole)
    assert forward_rate(T4, "efficientnet-lite0", 32, "float32") == pytest.approx(4 * whole)
    assert forward_rate(T4, "efficientnet-lite2", 224, "float32") == pytest.approx(whole * 0.407 / 0.899)


def test_the_slower_of_decoder_and_gpus_decides():
    recipe = Recipe("resnet50", 224, views=8, folds=5, trained=0)
    passes = TEST_ROWS * 8 * 5
    found = forecast.forecast(recipe, T4, "float32", FAST)
    assert found.kernel * 3600 - TABULAR_SECONDS == pytest.approx(passes / (2 * 429.83))
    assert found.training * 3600 == pytest.approx(TRAIN_ROWS * 8 / (2 * 429.83), rel=1e-3)
    slow = forecast.forecast(recipe, T4, "float32", 1.0)
    assert slow.kernel * 3600 - TABULAR_SECONDS == pytest.approx(TEST_ROWS / CORES)


def test_steps_cost_three_passes_at_the_speed_of_small_batches():
    recipe = Recipe("resnet50", 224, views=1, folds=2, trained=1000)
    none = Recipe("resnet50", 224, views=1, folds=2, trained=0)
    more = (
        forecast.forecast(recipe, P100, "float32", FAST).training - forecast.forecast(none, P100, "float32", FAST).training
    )
    assert more * 3600 == pytest.approx(3 * 2000 / 657 * 995.81 / 972.36)


def test_what_fits_has_a_margin_of_one():
    assert Forecast(6.0, 3.0).fits
    assert Forecast(6.0, 3.0).margin == pytest.approx(2)
    assert not Forecast(1.0, 24.0).fits
    assert Forecast(1.0, 24.0).margin == pytest.approx(0.5)
