import json

import pytest

from learner import checkpoint


def write(folder, step, *, state=None):
    path = checkpoint.step_folder(folder, step)
    partial = checkpoint.start(path)
    (partial / "model").mkdir()
    (partial / "model" / "weights").write_bytes(b"12345")
    checkpoint.finish(path, state or {"step": step})
    return path


def test_state_comes_back(tmp_path):
    assert checkpoint.read_state(write(tmp_path, 3, state={"step": 3, "cursor": [1, 2]})) == {
        "step": 3,
        "cursor": [1, 2],
    }


def test_checkpoint_has_its_name_only_when_it_is_whole(tmp_path):
    path = checkpoint.step_folder(tmp_path, 1)
    checkpoint.start(path)
    assert not path.exists()
    assert checkpoint.latest(tmp_path) is None
    checkpoint.finish(path, {})
    assert checkpoint.latest(tmp_path) == path


def test_killed_attempt_leaves_nothing_in_the_next_one(tmp_path):
    path = checkpoint.step_folder(tmp_path, 1)
    (checkpoint.start(path) / "stale").write_text("")
    checkpoint.start(path)
    checkpoint.finish(path, {})
    assert [file.name for file in path.iterdir()] == ["state.json"]


def test_newest_is_by_number_not_by_name(tmp_path):
    for step in (999_999, 1_000_000, 20):
        write(tmp_path, step)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_000020", "step_999999", "step_1000000"]


@pytest.mark.parametrize("content", [b"1234", b"123456", None])
def test_changed_file_is_found(tmp_path, content):
    path = write(tmp_path, 1)
    file = path / "model" / "weights"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match="expected 5 bytes; use an older checkpoint"):
        checkpoint.read_state(path)


def test_changed_counter_is_found(tmp_path):
    path = write(tmp_path, 1)
    content = json.loads((path / "state.json").read_text())
    content["state"]["step"] = 2
    (path / "state.json").write_text(json.dumps(content))
    with pytest.raises(checkpoint.CheckpointError, match="checksum"):
        checkpoint.read_state(path)


def test_cut_off_counters_are_found(tmp_path):
    path = write(tmp_path, 1)
    (path / "state.json").write_text('{"state": {"st')
    with pytest.raises(checkpoint.CheckpointError, match="is damaged"):
        checkpoint.read_state(path)


def test_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match=r"has no state\.json"):
        checkpoint.read_state(tmp_path)


def test_newest_and_spared_checkpoints_stay(tmp_path):
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    checkpoint.start(checkpoint.step_folder(tmp_path, 5))
    checkpoint.prune(tmp_path, keep=2, spare=tmp_path / "step_000001")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000001", "step_000003", "step_000004"]


def test_link_moves_and_survives_a_move_of_the_folder(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        checkpoint.link(folder / "latest", write(folder, step))
    folder.rename(tmp_path / "elsewhere")
    assert checkpoint.read_state(tmp_path / "elsewhere" / "latest") == {"step": 2}


def test_same_step_again_replaces_the_old_one(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 1, state={"step": 1, "again": True})
    assert checkpoint.read_state(checkpoint.step_folder(tmp_path, 1))["again"]


def test_a_changed_bit_is_found_by_the_content_alone(tmp_path):
    path = write(tmp_path, 1)
    (path / "model" / "weights").write_bytes(b"12354")
    assert checkpoint.read_state(path) == {"step": 1}
    with pytest.raises(checkpoint.CheckpointError, match=r"weights is not what was written"):
        checkpoint.read_state(path, verify=True)


def test_a_checkpoint_set_aside_counts_as_absent(tmp_path):
    write(tmp_path, 1)
    damaged = write(tmp_path, 2)
    assert checkpoint.set_aside(damaged).name == "step_000002.damaged"
    assert checkpoint.latest(tmp_path) == tmp_path / "step_000001"
