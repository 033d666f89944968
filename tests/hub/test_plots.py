"""The figure: what is drawn where, read from the Figure object, and the files that are saved."""

from itertools import pairwise

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex

from hf_clsi.hub import plots, tables

RECIPES = list(tables.RECIPES)


@pytest.fixture(scope="module")
def figure(fixed_results):
    figure = plots.make_figure(fixed_results)
    figure.canvas.draw()  # lays the panels out
    return figure


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_five_panels_with_titles_and_labels(figure):
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "(a) Topic-cloze, strict",
        "(b) Story-cloze, strict",
        "(c) Training",
        "(d) Alignment",
        "(e) Retrieval",
    ]
    assert [axes.get_xlabel() for axes in figure.axes[2:]] == [
        "tokens seen",
        "layer (stories)",
        "layer (stories)",
    ]
    assert figure.axes[0].get_ylabel() == "accuracy (%)"
    assert [axes.get_ylabel() for axes in figure.axes[2:]] == [
        "training loss (nats / token)",
        "cosine, aligned - random",
        "retrieval@1 (%)",
    ]


def test_a_bar_for_every_recipe_and_direction(figure, results):
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["EN", "FR", "EN→FR", "FR→EN"]
    assert len(axes.patches) == 24
    reached = {round(bar.get_y() + bar.get_height(), 9) for bar in axes.patches}
    cells = tables.select_cells(results, "strict", "gain", "sum")
    assert reached == {round(100 * c["accuracy"], 9) for key, c in cells.items() if key[1] == "topiccloze"}
    assert {bar.get_y() for bar in axes.patches} == {50}  # bars start at chance


def test_bars_carry_both_intervals(figure, results):
    axes = figure.axes[1]
    drawn = {tuple(np.round(line.get_ydata(), 9)) for line in axes.lines if line.get_linestyle() == "-"}
    cells = tables.select_cells(results, "strict", "gain", "sum")
    for (_, task, *_), cell in cells.items():
        if task == "storycloze":
            assert tuple(np.round([100 * b for b in cell["ci95"]], 9)) in drawn
            assert tuple(np.round([100 * b for b in cell["ci95_topics"]], 9)) in drawn


def test_chance_is_drawn_at_half_at_zero_and_at_one_in_n(figure):
    def dashed(axes):
        return [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]

    assert dashed(figure.axes[0]) == dashed(figure.axes[1]) == [50]
    assert dashed(figure.axes[3]) == [0]
    assert dashed(figure.axes[4]) == pytest.approx([100 / 331])


def test_a_recipe_keeps_its_color_in_every_panel(figure):
    topic, _, training, gap, retrieval = figure.axes
    for recipe in RECIPES:
        color = plots.STYLES[recipe][0].lower()
        bars = [bar for group in topic.containers if group.get_label() == recipe for bar in group]
        assert {to_hex(bar.get_facecolor()) for bar in bars} == {color}
        for axes in (training, gap, retrieval):
            (line,) = [line for line in axes.lines if line.get_label() == recipe]
            assert to_hex(line.get_color()) == color


def test_colors_and_markers_tell_all_recipes_apart():
    colors, markers = zip(*plots.STYLES.values(), strict=True)
    assert len(set(colors)) == len(set(markers)) == len(plots.STYLES) == 7


def test_one_legend_names_everything_and_covers_no_panel(figure):
    (legend,) = figure.legends
    names = {text.get_text() for text in legend.get_texts()}
    assert names == {*RECIPES, "untrained", "chance", "95%, items", "95%, topics"}
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width
    assert not any(box.overlaps(axes.get_tightbbox()) for axes in figure.axes)


def test_panels_and_their_labels_do_not_overlap(figure):
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    for i, one in enumerate(boxes):
        assert one.x0 >= 0 and one.x1 <= figure.bbox.width + 1
        assert not any(one.overlaps(other) for other in boxes[:i])


def test_training_curves_follow_the_log_and_mark_the_ends_of_stages(figure, results):
    axes = figure.axes[2]
    (curve,) = [line for line in axes.lines if line.get_label() == "interleave-ft"]
    log = results["training"]["interleave-ft"]
    assert curve.get_xdata().tolist() == [entry["tokens"] for entry in log]
    dots = [line for line in axes.lines if line.get_marker() == "o" and to_hex(line.get_color()) == "#ffffff"]
    ends = {line.get_xdata()[0] for line in dots if to_hex(line.get_markeredgecolor()) == "#e69f00"}
    borders = [one["tokens"] for one, two in pairwise(log) if one["stage"] != two["stage"]]
    assert ends == set(borders) and len(borders) == 2


def test_short_training_logs_are_drawn_as_they_are():
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    log = [
        {"stage": "a", "step": i, "tokens": 100 * i, "loss": loss}
        for i, loss in enumerate([5.0, 4.0, 4.5], 1)
    ]
    plots.draw_training(axes, {"interleave": log})
    (curve,) = [line for line in axes.lines if line.get_label() == "interleave"]
    assert curve.get_ydata().tolist() == [5.0, 4.0, 4.5]


def test_the_running_mean_is_centred_and_keeps_ends_and_level():
    values = np.array([1.0, 2.0, 6.0, 2.0, 1.0])
    assert plots._running_mean(values, 2).tolist() == pytest.approx([1.0, 3.0, 10 / 3, 3.0, 1.0])
    assert plots._running_mean(values, 0).tolist() == values.tolist()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (950, "950"), (250_000, "250k"), (1_200_000, "1.2M"), (61_440_000_000, "61.44B")],
)
def test_counts_on_the_axis_are_short(count, text):
    assert plots._short_count(count) == text


def test_panels_without_data_say_so(results):
    only = {"rows": [row for row in results["rows"] if row["task"] == "topiccloze"]}
    figure = plots.make_figure(only)
    assert [texts(axes) for axes in figure.axes] == [[], *[["not measured"]] * 4]


def test_alignment_falls_back_to_the_data_that_was_measured(results):
    results["alignment"] = [e for e in results["alignment"] if e["data"] == "parallel-prompts"]
    assert plots.make_figure(results).axes[3].get_xlabel() == "layer (parallel prompts)"


def test_the_png_has_the_asked_size_and_is_not_blank(tmp_path, results):
    (path,) = plots.save_figure(results, tmp_path / "report.png", dpi=100, width_in=7, height_in=5)
    image = matplotlib.image.imread(path)
    assert image.shape[:2] == (500, 700)
    assert 0.02 < (image[..., :3].min(axis=-1) < 0.95).mean() < 0.5
    assert [p.name for p in tmp_path.iterdir()] == ["report.png"]


def test_a_vector_copy_can_stand_beside_it(tmp_path, results):
    _, pdf = plots.save_figure(results, tmp_path / "report.png", dpi=50, pdf=True)
    assert pdf == tmp_path / "report.pdf"
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF") and b"/Type3" not in content and b"CreationDate" not in content


def test_the_same_results_give_the_same_bytes(tmp_path, results):
    (one,) = plots.save_figure(results, tmp_path / "one.png", dpi=60)
    (two,) = plots.save_figure(results, tmp_path / "two.png", dpi=60)
    assert one.read_bytes() == two.read_bytes()


def test_drawing_leaves_the_users_matplotlib_settings_alone(results):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.make_figure(results)
    assert dict(matplotlib.rcParams) == before
