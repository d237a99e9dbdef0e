import json

import pytest
from support.torchrun import launch

pytestmark = pytest.mark.slow


def run(script, folder):
    """What each of two ranks wrote."""
    launch(script, folder)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run("distributed_epochs.py", tmp_path_factory.mktemp("ranks"))


def test_all_ranks_plan_the_same(ranks):
    assert ranks[0]["plans"] == ranks[1]["plans"]
    sizes = [len(plan) for plan in ranks[0]["plans"]]
    assert sizes[0] == 203
    assert max(sizes[1:]) < 203


def test_no_sample_is_seen_twice_and_none_is_lost(ranks):
    for plan, first, second in zip(
        ranks[0]["plans"], ranks[0]["shares"], ranks[1]["shares"], strict=True
    ):
        assert sorted(first + second) == sorted(plan)
        assert len(set(plan)) == len(plan)
        assert abs(len(first) - len(second)) <= 1


def test_one_collective_an_epoch_merges_the_scores(ranks):
    assert ranks[0]["collectives"] == ranks[1]["collectives"] == [1, 1, 1, 1]
    assert ranks[0]["scores"] == ranks[1]["scores"]
    assert all(score < float("inf") for score in ranks[0]["scores"])


def test_planning_and_saving_without_it_are_refused(ranks):
    for rank in ranks:
        assert "call sync() on every rank before state_dict()" in rank["state refused"]
        assert "call sync() on every rank before plan(4)" in rank["refused"]


def test_all_ranks_measure_and_decide_the_same(ranks):
    assert ranks[0]["rotation"] == ranks[1]["rotation"]
    assert ranks[0]["rotation"][-1] > 0
    assert ranks[0]["end_epoch"] == ranks[1]["end_epoch"]
    assert ranks[0]["end_epoch"] is not None


def test_sharded_layers_are_measured_as_the_whole_ones(tmp_path):
    first, second = run("sharded_rotation.py", tmp_path)
    assert first == second
    assert first["names"] == ["0.weight", "2.weight", "3.weight"]
    for measured, mean, expected in zip(
        first["measured"], first["mean"], first["expected"], strict=True
    ):
        assert measured == pytest.approx(expected, rel=1e-6)
        assert mean == pytest.approx(sum(expected) / 3, rel=1e-6)
    assert "not for sharded parameters" in first["refused"]
    assert "each process would measure other paths" in first["paths refused"]


def test_states_are_taken_up_by_other_numbers_of_processes_and_other_shards(tmp_path):
    # rows and columns that no number of processes divides; strided shards, in "2d"
    script = "sharded_states.py"
    launch(script, tmp_path, "save", "fsdp", processes=2)
    launch(script, tmp_path, "load", "fsdp", "hsdp", "2d", processes=4)
    launch(script, tmp_path, "load", "tp", "fsdp", processes=2)
    launch(script, tmp_path, "load", "plain", processes=1)
    saved = json.loads((tmp_path / "save-fsdp-2-rank0.json").read_text())
    loaded = sorted(tmp_path.glob("load-*.json"))
    assert len(loaded) == 3 * 4 + 2 * 2 + 1
    for path in loaded:
        log = json.loads(path.read_text())
        for key in ("measured", "from one file"):
            assert log[key] == pytest.approx(saved["measured"], rel=1e-6), path
        for key in ("detector", "plan", "next", "planned"):
            assert log[key] == saved[key], path
    assert saved["detector"]["end_epoch"] is not None and len(saved["next"]) < 40
