"""Pictures that no clock decides about."""

from __future__ import annotations

import warnings

from secateur.report.drawing import new_figure, write_png


def test_a_machine_that_draws_slowly_is_not_warned_of(tmp_path, monkeypatch):
    figure = new_figure(2, 1)
    save = figure.savefig

    def slowly(*args, **kwargs):
        warnings.warn('Creating legend with loc="best" can be slow with large amounts of data.', stacklevel=1)
        save(*args, **kwargs)

    monkeypatch.setattr(figure, "savefig", slowly)
    assert write_png(figure, tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
