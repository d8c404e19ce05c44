from train.charts import clean_axes, new_figure, save_png, styled_axes


def test_a_figure_is_saved_as_png_and_leaves_no_other_file(tmp_path):
    figure = new_figure(2, 1)
    clean_axes(figure.subplots(), grid="y")
    save_png(figure, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["chart.png"]


def test_clean_axes_have_no_frame_above_and_no_tick_marks():
    axes = new_figure(2, 1).subplots()
    clean_axes(axes, grid=None)
    assert not axes.spines["top"].get_visible()
    assert axes.spines["left"].get_visible()
    assert all(tick.tick1line.get_markersize() == 0 for tick in axes.xaxis.get_major_ticks())


def test_names_with_dollar_signs_are_drawn_as_they_are(tmp_path):
    with styled_axes(2, 1) as (figure, axes):
        axes.set_title("$x_1")
        save_png(figure, tmp_path / "chart.png")
    assert not axes.title.get_parse_math()
