"""Chains on the report page: score, published score, goals, and every chain as a row of its stages."""

import re

import pytest

from rdvla.envs import find_suite
from rdvla.errors import ConfigError
from rdvla.report.chains import PUBLISHED, by_place, chain_section, headline
from rdvla.report.load import group_runs, load_runs
from rdvla.report.page import render
from report_fakes import ADAPTIVE, DEPTHS, GOALS, edit, write_chains, write_run


def sections(*folders):
    return [chain_section(series) for series in group_runs(load_runs(folders))]


def test_rows_can_be_scanned(tmp_path):
    (section,) = sections(write_chains(tmp_path / "run", [5, 0, 2]))
    (group,) = section.groups
    assert [row.start for row in group.rows] == ["chain 0", "chain 1", "chain 2"]
    assert [row.solved for row in group.rows] == [5, 0, 2]
    assert [cell.state for cell in group.rows[2].cells] == ["solved", "solved", "failed", "unreached", "unreached"]
    assert group.rows[2].cells[2].words == "3 of 5: do lift_red_block_table (not solved in 360 steps)"
    assert group.rows[2].cells[4].words == "5 of 5: not reached"
    assert section.goals == tuple(sorted(GOALS))


def test_the_page_shows_score_rows_goals_and_the_paper(tmp_path):
    page = render(load_runs([write_chains(tmp_path / "run", [5, 0, 2, 3])]))
    assert 'id="chains-1"' in page
    assert re.search(r"<h1>2\.50 of 5 tasks in a row on average, 25.% of 4 chains solved whole</h1>", page)
    words = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "(calvin_d, protocol official)" in words
    assert "depth 8 75.0 % 75.0 % 50.0 % 25.0 % 25.0 % 2.50" in words
    assert "91.4 % 79.5 % 67.9 % 54.9 % 45.3 % 3.39" in words
    assert "open_drawer 3/4" in words
    assert "stack_block 1/2" in words
    assert page.count('<i class="solved" title="') == 10
    assert page.count('<i class="unreached" title="') == 4 + 2 + 1
    assert 'title="1 of 5: do open_drawer (not solved in 360 steps)"' in page


def test_two_protocols_of_the_same_chains_are_two_results(tmp_path):
    official = write_chains(tmp_path / "official", [1, 1])
    released = write_chains(tmp_path / "released", [4, 2], protocol="released")
    (section,) = sections(official, released)
    assert [(group.name, group.score.average.value) for group in section.groups] == [
        ("depth 8, official", 1.0),
        ("depth 8, released", 3.0),
    ]
    found = headline(group_runs(load_runs([official, released])))
    assert found.startswith("3.00 of 5 tasks in a row on average (depth 8, released, the highest of 2), ")


def test_seeds_come_after_chains_and_rules_have_groups_of_their_own(tmp_path):
    run = write_chains(tmp_path / "run", [0, 3], stops=DEPTHS[:2], seeds=(12, 4))
    (section,) = sections(run, write_chains(tmp_path / "more", [1], stops=DEPTHS[:1]))
    assert [group.name for group in section.groups] == ["depth 1", "depth 2"]
    assert [[row.start for row in group.rows] for group in section.groups] == [
        ["chain 0", "seed 4", "seed 12"],
        ["seed 4", "seed 12"],
    ]


def test_without_chains_there_is_no_section(tmp_path):
    run = write_run(tmp_path / "run", stops=DEPTHS[:1])
    assert sections(run) == [None]
    assert headline(group_runs(load_runs([run]))) is None
    assert "chains-1" not in render(load_runs([run]))


@pytest.mark.parametrize("suite", PUBLISHED)
def test_published_averages_are_the_sums_of_their_rates(suite):
    assert sum(PUBLISHED[suite].at_least) == pytest.approx(PUBLISHED[suite].average, abs=0.01)
    assert len(PUBLISHED[suite].at_least) == find_suite(suite).num_stages


def test_iterations_stand_at_the_place_of_what_was_solved(tmp_path):
    """A task that fails goes on to its limit, so the 20 of the third task are not shown."""
    run = write_chains(tmp_path / "run", [2, 2, 1], stops=(ADAPTIVE,), iterations=(4, 6, 20))
    (series,) = group_runs(load_runs([run]))
    assert [(place, mean.value) for place, mean in by_place(series.rules[0])] == [(1, 4.0), (2, 6.0)]
    page = render(load_runs([run]))
    assert "place 2: 6.00 (6.00 to 6.00)" in page.replace("\u00a0", " ")
    assert "by their place in the chain" in page
    assert "by their place in the chain" not in render(load_runs([write_chains(tmp_path / "fixed", [2])]))


def test_an_episode_drawn_by_two_renderers_is_no_single_result(tmp_path):
    def drawn(name, renderer, chains):
        folder = write_chains(tmp_path / name, [1] * len(chains), init_states=chains)
        return edit(folder, lambda record: record | {"versions": {"renderer": renderer}})

    tiny, egl = drawn("tiny", "tiny", (0, 1)), drawn("egl", "egl", (1, 2))
    with pytest.raises(ConfigError, match=r"state 1, under .*, played differently \(renderer egl, tiny\); name one"):
        group_runs(load_runs([tiny, egl]))
    page = render(load_runs([tiny, drawn("more", "egl", (2,))]))
    assert "Not alike in all: renderer egl, tiny." in page
