import os
import stat
from pathlib import Path

import pytest

from distsync.command.bootstrap import plan_creation
from distsync.command.calls import Identity
from distsync.command.cluster_dir import ClusterDir, Shape
from distsync.command.failures import Failure

SHAPE = Shape(nodes=3, base_port=8080)


def test_the_shape_is_kept(tmp_path: Path) -> None:
    who = Identity(member_id="a", name="node-1", state="uninitialised")
    creation = plan_creation({"node-1": who}, None)
    assert creation is not None
    shape = Shape(nodes=1, base_port=9000, genesis=creation.genesis)
    with ClusterDir.open(tmp_path / "d", fresh=False) as directory:
        assert directory.shape is None
        directory.save(shape)
    with ClusterDir.open(tmp_path / "d", fresh=False) as directory:
        assert directory.shape == shape


def test_the_secret_is_minted_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    with ClusterDir.open(tmp_path / "d", fresh=False) as directory:
        directory.save(SHAPE)
        secret = directory.secret()
        assert len(secret) == 64
        assert stat.S_IMODE(directory.secret_file.stat().st_mode) == 0o600
    with ClusterDir.open(tmp_path / "d", fresh=False) as directory:
        assert directory.secret() == secret


def test_fresh_removes_what_is_ours_and_nothing_else(tmp_path: Path) -> None:
    with ClusterDir.open(tmp_path / "d", fresh=False) as directory:
        directory.save(SHAPE)
        secret = directory.secret()
        directory.node_dir("node-1").mkdir()
        (directory.node_dir("node-1") / "log").write_text("old")
        directory.log_file("node-1").write_text("old")
        directory.redis_dir.mkdir()
        (directory.redis_dir / "appendonly.aof").write_text("old")
        directory.log_file("redis").write_text("old")
        (tmp_path / "d" / "notes.txt").write_text("mine")
        (tmp_path / "d" / "node-x").mkdir()
    with ClusterDir.open(tmp_path / "d", fresh=True) as directory:
        assert directory.shape is None
        assert sorted(p.name for p in (tmp_path / "d").iterdir()) == [
            ".lock",
            "node-x",
            "notes.txt",
        ]
        directory.save(SHAPE)
        assert directory.secret() != secret


@pytest.mark.parametrize("fresh", [False, True])
def test_a_directory_that_is_not_ours_is_left_alone(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "node-1").mkdir()
    with pytest.raises(Failure, match="was not made by distsync up") as refused:
        ClusterDir.open(tmp_path, fresh=fresh)
    assert refused.value.exit_code == 2
    assert (tmp_path / "node-1").is_dir()


def test_a_second_up_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    with (
        ClusterDir.open(tmp_path / "d", fresh=False),
        pytest.raises(Failure, match="another distsync up is running"),
    ):
        ClusterDir.open(tmp_path / "d", fresh=True)


def test_a_file_instead_of_a_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(Failure, match="cannot use") as refused:
        ClusterDir.open(tmp_path / "f", fresh=False)
    assert refused.value.exit_code == 2


def test_a_damaged_marker_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "distsync-up.json").write_text("{")
    with pytest.raises(Failure, match="is damaged"):
        ClusterDir.open(tmp_path, fresh=False)


def test_a_link_to_elsewhere_is_removed_and_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("")
    with ClusterDir.open(tmp_path / "d", fresh=False) as directory:
        directory.save(SHAPE)
        os.symlink(elsewhere, directory.node_dir("node-1"))
    with ClusterDir.open(tmp_path / "d", fresh=True):
        assert not (tmp_path / "d" / "node-1").is_symlink()
    assert (elsewhere / "precious").exists()


def test_the_last_words_of_a_node_are_its_last_line(tmp_path: Path) -> None:
    with ClusterDir.open(tmp_path / "d", fresh=False) as directory:
        assert directory.last_words("node-1") == ""
        directory.log_file("node-1").write_text("x" * 10_000 + "\nthe port is taken\n")
        assert directory.last_words("node-1") == "the port is taken"
