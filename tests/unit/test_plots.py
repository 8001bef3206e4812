"""What a reader sees of an axis: labels that leave each other room and say plain numbers."""

from __future__ import annotations

import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from nas.report import plots

RANGES = [
    (0, 100),
    (10, 99.9),
    (50, 97),
    (60, 89),
    (90, 97.9),
    (97, 97.4),
    (99.1, 99.93),
    (96.21, 96.24),
    (0, 3),
]


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("panelled", [False, True])
@pytest.mark.some(6)
def test_labels_of_an_accuracy_axis_leave_each_other_room(low: float, high: float, panelled: bool) -> None:
    rows = 2 if panelled else 1
    with matplotlib.rc_context(plots.STYLE):
        size = {"width": 6.6, "height": 0.6 + 1.9 * rows} if panelled else {}
        figure, (axes, *_) = plots._canvas(rows, rows, **size)
        axes.plot([0, 1], [low, high], label="a strategy")
        plots._accuracy_axis(axes, np.asarray([low, high], float), low, high, panelled=panelled)
        plots._legend(axes)
        figure.supxlabel("epochs\nof the search")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        bottom, top = axes.get_ylim()
        shown = [text for text in axes.get_yticklabels() if bottom <= text.get_position()[1] <= top]
        boxes = sorted(
            (text.get_window_extent(canvas.get_renderer()) for text in shown), key=lambda box: box.y0
        )
    assert len(shown) >= 2
    assert all(below.y1 <= above.y0 for below, above in itertools.pairwise(boxes))
    assert all(float(text.get_text()) >= 0 for text in shown)
