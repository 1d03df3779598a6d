"""A whole private run under noise, through the core, the host and the nodes' own units."""

from __future__ import annotations

from pathlib import Path

from support.silo_run import make_folder, run_silos, tiny_texts

from smalltalk_fed.core.units import UnitKind
from smalltalk_fed.mixture.package import read_mixture
from smalltalk_fed.mixture.silo_prices import WITHHELD, decode_counts


def test_each_silo_counts_once_a_step_though_noise_counts_more_than_is_held_out(
    tmp_path: Path,
) -> None:
    """Rows of three counts over 20 sequences, with noise of ten on each."""
    folder = make_folder(
        tmp_path,
        run={"experts": 3},
        private={"experts_of": [1, 1, 1]},
        privacy={"router_noise": 1.0, "count_noise": 10.0},
    )
    silos = run_silos(folder, tiny_texts(tmp_path / "texts"))
    assert len(read_mixture(folder.mixture).prices) == 3
    totals = []
    for silo in silos:
        counts = [each for each in silo.handed_in if each[0].key.kind is UnitKind.COUNT]
        assert len({unit.unit_id for unit, _ in counts}) == len(counts) == 4
        for _, done in counts:
            row = decode_counts(bytes(done.outputs["counts"]), 3, 1)
            totals.append(int(row[row != WITHHELD].sum()))
    assert max(totals) > 20
