"""Pictures: what is drawn, that a file does not change from one drawing to the next, and what is refused."""

import sys
from dataclasses import dataclass

import pytest
from torch import nn

import frozen_kernels as fk

matplotlib = pytest.importorskip("matplotlib")

LOG = [
    {"epoch": "1", "lr": "0.1", "loss": "2.0", "train_accuracy": "0.3", "validation_accuracy": "", "seconds": "1"},
    {"epoch": "2", "lr": "0.1", "loss": "1.0", "train_accuracy": "0.5", "validation_accuracy": "", "seconds": "2"},
]


@dataclass
class Run:
    source: str
    freeze_ratio: float
    ticket_bytes: int
    accuracy: float


RUNS = [
    Run("frozen", 0.7, 1000, 0.90),
    Run("frozen", 0.7, 1000, 0.96),
    Run("frozen", 0.5, 30_000, 0.97),
    Run("dense", 0.0, 40_000, 0.99),
]
AXES = {"x": "ticket_bytes", "series": "source", "point": "freeze_ratio"}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20), nn.Linear(20, 4))


def texts(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_layers_shows_the_counts_of_each_layer():
    model = net()
    fk.freeze_(model, fk.FreezeConfig(seed=1, sparsity=0.6, prune_ratio=0.3, lock_ratio=0.2))
    axes = fk.plot.layers(model).axes[0]
    frozen = [m for m in model if isinstance(m, fk.nn.FrozenLayer)]
    expected = []
    for part in ("locked", "kept", "dropped", "pruned"):
        for layer in frozen:
            c = layer.counts
            kept = c["kept"] - c["locked"]
            of = {"locked": c["locked"], "kept": kept, "dropped": c["free"] - kept, "pruned": c["pruned"]}
            expected.append(of[part] / (layer.rows * layer.cols))
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(expected)
    assert texts(axes.yaxis) == ["0", "2", "3"]


def test_layers_of_stored_weights_are_kept_or_dropped():
    model = net()
    fk.freeze_(model, fk.FreezeConfig(code="stored", sparsity=0.75), lambda module, name: True)
    fk.finalize_(model)
    figure = fk.plot.layers(model, title="mine")
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["free, kept", "free, dropped"]
    assert figure.axes[0].get_title() == "mine"


def test_many_layers_have_thin_bars_and_some_names():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(60)))
    fk.freeze_(model)
    figure = fk.plot.layers(model)
    names = texts(figure.axes[0].yaxis)
    assert figure.get_size_inches()[1] < 17 and names[:2] == ["0", "2"] and len(names) == 30


@pytest.mark.long
def test_a_picture_is_the_same_file_whatever_the_users_settings(tmp_path):
    fk.plot.sweep(RUNS, tmp_path / "new" / "first.svg", **AXES)
    with matplotlib.rc_context({"font.size": 30, "figure.facecolor": "black"}):
        fk.plot.sweep(RUNS, tmp_path / "new" / "again", **AXES)
        assert matplotlib.rcParams["font.size"] == 30
    for kind in ("png", "svg"):
        first, again = ((tmp_path / "new" / f"{name}.{kind}").read_bytes() for name in ("first", "again"))
        assert first == again and first.startswith(b"\x89PNG" if kind == "png" else b"<?xml")


def test_a_notebook_shows_a_picture():
    assert fk.plot.curves(LOG)._repr_png_().startswith(b"\x89PNG")


def test_curves_of_a_log():
    accuracy, loss = fk.plot.curves(LOG).axes
    assert [list(line.get_ydata()) for line in accuracy.lines] == [[0.3, 0.5]]
    assert [list(line.get_ydata()) for line in loss.lines] == [[2.0, 1.0]]
    assert list(loss.lines[0].get_xdata()) == [1, 2]


def test_curves_of_several_runs_and_seeds():
    other = [{**row, "loss": 3 * float(row["loss"])} for row in LOG]
    accuracy, loss = fk.plot.curves({"frozen": [LOG, other], "dense": LOG}).axes
    assert [list(line.get_ydata()) for line in loss.lines] == [[4.0, 2.0], [2.0, 1.0]]
    assert len(loss.collections) == 1 and not accuracy.collections  # the span of the seeds where they differ
    assert [t.get_text() for t in loss.get_legend().get_texts()] == ["frozen", "dense"]
    (only,) = fk.plot.curves([{"epoch": 1, "accuracy": 0.5}]).axes
    assert only.get_ylabel() == "accuracy"


@pytest.mark.parametrize(
    ("history", "words"),
    [
        ([], "loss.*accuracy.*no rows"),
        ({}, "got none"),
        ([{"loss": 1}], "row 0: no column 'epoch'.*'loss'"),
        ([{"epoch": 1, "lr": 2}], "loss.*accuracy.*'epoch', 'lr'"),
        ([{"epoch": 1, "loss": 1}, {"epoch": 2, "loss": "much"}], "row 1: a number in column 'loss', got 'much'"),
        (None, "history: rows of epochs, got NoneType"),
        (["abc"], "row 0: a mapping from columns to values, got str"),
        ([{"epoch": 1, "loss": 2, None: ["x"]}], r"row 0: columns have names .* got None: \['x'\]; csv.DictReader"),
        ([{"epoch": 1, "loss": 2, 3: 4}], "row 0: columns have names that are text, got 3: 4$"),
        ([{"epoch": "inf", "loss": 2}], "row 0: a finite number in column 'epoch', got 'inf'"),
        ({"a": [LOG, LOG[:1]]}, "column 'train_accuracy'|column 'loss'"),
    ],
)
def test_curves_refuses(history, words):
    with pytest.raises(ValueError, match=words):
        fk.plot.curves(history)


def test_sweep_shows_means_and_spread():
    (axes,) = fk.plot.sweep(RUNS, references={"chance": 0.1, "trained": 0.98}, ylabel="right", **AXES).axes
    frozen, dense = axes.containers
    assert list(frozen[0].get_xdata()) == [1000, 30_000]
    assert list(frozen[0].get_ydata()) == pytest.approx([0.93, 0.97])
    (bars,) = frozen[2]
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([0.90, 0.96])
    assert list(dense[0].get_ydata()) == [0.99]
    assert axes.get_xscale() == "log" and axes.get_ylim()[0] > 0.8
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("ticket bytes", "right")
    legend = [t.get_text() for t in axes.get_legend().get_texts()]
    assert sorted(legend) == ["chance: 10 % (below)", "dense", "frozen", "trained: 98 %"]
    assert [t.get_text() for t in axes.texts] == ["0.7", "0.5", "0"]


def test_sweep_of_near_values_is_linear_and_many_series_have_their_legend_outside():
    rows = [{"series": f"rule {i}", "bytes": 100 + i, "accuracy": 0.9} for i in range(9)]
    figure = fk.plot.sweep(rows)
    assert figure.axes[0].get_xscale() == "linear" and len(figure.legends[0].get_texts()) == 9
    looks = {(c[0].get_color(), c[0].get_marker()) for c in figure.axes[0].containers}
    assert len(looks) == 9


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "rows: one for each run, got none"),
        ([3], "row 0: a mapping or a dataclass, got int"),
        ([{"bytes": 1, "accuracy": 1}], "row 0: no column 'series', there are 'bytes', 'accuracy'"),
        ([{"series": "a", "accuracy": 1}], "row 0: no column 'bytes'"),
        ([{"series": "a", "bytes": None, "accuracy": 1}], "row 0: a finite number in column 'bytes', got None"),
        ([{"series": "a", "bytes": 1, "accuracy": "nan"}], "row 0: a finite number in column 'accuracy', got 'nan'"),
    ],
)
def test_sweep_refuses(rows, words):
    with pytest.raises(ValueError, match=words):
        fk.plot.sweep(rows)


def test_sweep_refuses_references_that_are_no_numbers():
    with pytest.raises(ValueError, match="references: 'x' is a finite number, got 'y'"):
        fk.plot.sweep(RUNS, references={"x": "y"}, **AXES)


def test_a_run_that_diverged_has_a_gap():
    rows = [{"epoch": i, "loss": loss} for i, loss in enumerate(("3", "nan", "inf", "2"))]
    (axes,) = fk.plot.curves(rows).axes
    assert [str(y) for y in axes.lines[0].get_ydata()] == ["3.0", "nan", "nan", "2.0"] and not axes.collections
    (axes,) = fk.plot.curves({"a": [rows, [{**row, "loss": 1} for row in rows]]}).axes
    assert [str(y) for y in axes.lines[0].get_ydata()] == ["2.0", "nan", "nan", "1.5"] and axes.get_ylim()[1] < 4


def test_names_are_shown_as_they_are():
    """A dollar begins no formula, and labels with an underscore are in the legend."""
    model = nn.Sequential()
    model.add_module("x$\\frac{$y", nn.Linear(40, 30))
    fk.freeze_(model, fk.FreezeConfig(seed=1))
    figure = fk.plot.layers(model, title="$5 and $\\nope$")
    assert figure._repr_png_().startswith(b"\x89PNG") and texts(figure.axes[0].yaxis) == ["x$\\frac{$y"]
    figure = fk.plot.curves({"_a$b$": LOG, "": LOG})
    assert [t.get_text() for t in figure.axes[1].get_legend().get_texts()] == [" _a$b$", " "]
    assert not any(t.get_parse_math() for t in figure.axes[1].get_legend().get_texts())
    rows = [{"series": name, "bytes": 1, "accuracy": 0.9} for name in ("_a", "b")]
    (axes,) = fk.plot.sweep(rows, references={"_c": 0.9}).axes
    assert {t.get_text() for t in axes.get_legend().get_texts()} == {" _a", "b", " _c: 90 %"}


def test_both_files_or_an_error_that_names_the_path(tmp_path, monkeypatch):
    monkeypatch.setattr("frozen_kernels.plot.canvas.rendered", lambda figure, kind: kind.encode())
    figure = fk.plot.curves(LOG)
    for name in ("a", "a.PNG", "a.Svg"):
        assert fk.plot.save(figure, tmp_path / name) == [tmp_path / "a.png", tmp_path / "a.svg"]
    assert fk.plot.save(figure, f"{tmp_path}/b.v1.png") == [tmp_path / "b.v1.png", tmp_path / "b.v1.svg"]
    assert (tmp_path / "a.png").read_bytes() == b"png" and len(list(tmp_path.iterdir())) == 4
    monkeypatch.chdir(tmp_path)
    for path in ("c/", ".png", "", "..", "c/.SVG"):
        with pytest.raises(ValueError, match=f"^path: a file, .*got '{path}'"):
            fk.plot.save(figure, path)
    assert len(list(tmp_path.iterdir())) == 4


def test_layers_refuses_models_without_masks():
    with pytest.raises(TypeError, match=r"model: a torch.nn.Module, got str"):
        fk.plot.layers("x")
    with pytest.raises(ValueError, match="no frozen layers"):
        fk.plot.layers(net())
    model = nn.Sequential(nn.Linear(4, 4, device="meta"))
    fk.freeze_(model)
    with pytest.raises(ValueError, match="'0' is on the meta device"):
        fk.plot.layers(model)


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        fk.plot.curves(LOG, tmp_path / "file" / "curves")


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    for name in [n for n in sys.modules if n.startswith(("frozen_kernels.plot.", "matplotlib"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"frozen-kernels\[plot\]"):
        fk.plot.curves(LOG)


def test_the_examples_draw_with_it(tmp_path, capsys, monkeypatch):
    """Of made-up results: what training leaves in its log, and runs of the comparisons."""
    import compare_rules
    import compare_sources
    import digits
    import train

    drawn = []
    monkeypatch.setattr(fk.plot, "save", lambda figure, path: drawn.append((figure, path)))
    (tmp_path / "log.csv").write_text("epoch,loss,test_accuracy\n1,2.0,0.5\n2,1.0,0.75\n")
    train.draw_curves(tmp_path)
    sources = [compare_sources.Run(*run) for run in (("frozen", 0.5, 0, 0.5, 6000, 9000, 0.9),
               ("dense_source", 0.0, 0, 0.5, 12_000, 15_000, 0.95))]  # fmt: skip
    compare_sources.plot(sources, tmp_path / "sources.png")
    compare_rules.plot(
        [compare_rules.Run(name, 0, 1, share, 100, 10, 0.5) for name, share in (("ugt", 0.9), ("random", 0.1))],
        tmp_path / "rules.png",
    )
    points = [digits.Point("frozen", 0.5, 9000, 6000, 0.9)]
    digits.plot(points, {"dense": {"disk": 90_000, "accuracy": 0.97}}, tmp_path / "size.png", epochs=1, seed=0)
    (curves, path), (by_source, _), (by_rule, _), (by_size, _) = drawn
    assert path == tmp_path / "curves" and list(curves.axes[0].lines[0].get_ydata()) == [0.5, 0.75]
    assert [c[0].get_xdata()[0] for c in by_source.axes[0].containers] == [6000, 12_000]
    legend = [t.get_text() for t in by_rule.axes[0].get_legend().get_texts()]
    assert sorted(legend) == ["UGT", "random mask: 10 % (below)"]
    assert [t.get_text() for t in by_size.axes[0].texts] == ["0.5"]
    monkeypatch.setitem(sys.modules, "frozen_kernels.plot.by_epoch", None)
    train.draw_curves(tmp_path)
    assert capsys.readouterr().err.startswith("no curves: ")
