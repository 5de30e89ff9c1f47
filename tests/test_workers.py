"""Several devices and several machines, which here are processes of one machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, TINY, arguments

import gan


def free_ports(count):
    """Return ports of this machine that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_two(folder, *words):
    """Start two workers of one cluster, each with the words after python."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    for index in (0, 1):
        task = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        yield subprocess.Popen(
            [sys.executable, *(str(word).format(index) for word in words)],
            cwd=folder,
            env=os.environ | {"TF_CONFIG": json.dumps(task)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def finish(workers):
    """Return (exit status, stdout, stderr) of each worker."""
    ends = [worker.communicate(timeout=120) for worker in workers]
    return [(worker.returncode, *end) for worker, end in zip(workers, ends)]


def test_two_workers_equal_two_devices_and_one_replica(tmp_path):
    script = ROOT / "tests" / "workers.py"
    workers = list(start_two(tmp_path, script, "worker", "worker{}.npz"))
    others = [
        subprocess.Popen([sys.executable, script, how, f"{how}.npz"], cwd=tmp_path)
        for how in ("mirrored", "one")
    ]
    assert [end[0] for end in finish(workers)] == [0, 0]
    assert [other.wait(timeout=120) for other in others] == [0, 0]
    results = {}
    for name in ("worker0", "worker1", "mirrored", "one"):
        with np.load(tmp_path / f"{name}.npz") as arrays:
            results[name] = dict(arrays)
    first = results["worker0"]
    assert len(first) > 80
    for key, value in first.items():
        assert np.array_equal(value, results["worker1"][key]), key
        # With batch normalisation ("True") a bias before it has no gradient but what rounding
        # leaves, of which Adam makes whole steps.
        near = 0.02 if key.startswith("True") else 1e-4
        if " 5 " in key:  # the first few steps
            assert np.allclose(value, results["one"][key], atol=near), key
        if " 5 " in key or key.startswith("False"):
            assert np.allclose(value, results["mirrored"][key], atol=near), key
    assert not np.allclose(first["False 5 1"], first["False 30 1"], atol=1e-3)  # they went on


def test_workers_train_as_one_and_go_on_after_one_is_killed(data, tmp_path):
    settings = arguments(DATA=data, **TINY | {"EPOCHS": 100000, "LR_DECAY": False})
    workers = list(start_two(tmp_path, ROOT / "gan.py", *settings))
    run = tmp_path / "samples" / "dots-001"
    began = time.monotonic()
    while not (run / "epoch-003.png").exists() and time.monotonic() - began < 100:
        time.sleep(0.1)
    workers[1].kill()
    (status, out, err), (killed, *_) = finish(workers)
    assert (status, killed) == (1, -signal.SIGKILL)
    *remarks, last = err.splitlines()  # TensorFlow 2.18 has some
    assert "another worker is gone" in last and "worker 0" in out
    assert "Traceback" not in err and not any(line.startswith("gan.py") for line in remarks)
    done = int(np.load(max((run / "checkpoint").iterdir()))["arr_" + str(counters(run))][0])
    again = list(start_two(tmp_path, ROOT / "gan.py", "--resume", f"EPOCHS={done + 1}"))
    (first, out, err), (second, silent, problem) = finish(again)
    assert (first, second) == (0, 0), (err, problem)
    assert f"{done + 1}/{done + 1}" in out and silent.count("\n") == 1 and "worker 1" in silent
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["dots-001"]


def counters(run):
    """Return the number of the checkpoint's array that counts epochs."""
    with np.load(max((run / "checkpoint").iterdir())) as arrays:
        return len(arrays) - 2


def test_workers_that_were_started_with_other_settings_say_so(data, tmp_path):
    settings = arguments(DATA=data, **TINY)
    workers = list(start_two(tmp_path, ROOT / "gan.py", *settings, "SEED={}"))
    ends = finish(workers)
    assert [end[0] for end in ends] == [2, 2]
    assert all("the workers differ" in end[2] for end in ends)


def test_a_batch_that_cannot_be_divided_among_the_replicas_names_both_numbers(
    small, data, monkeypatch
):
    class Three:
        num_replicas_in_sync = 3

    small(DATA=str(data))
    monkeypatch.setattr(gan, "choose_strategy", lambda: (Three(), True))
    with pytest.raises(gan.Problem, match="BATCH_SIZE=20 .* 3 replicas"):
        gan.run(False, None, {}, [])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"task": 1}', '{"cluster": {}, "task": {}}'])
def test_a_bad_tf_config_gets_one_line(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(gan.Problem, match="TF_CONFIG (cannot be used|has no)"):
        gan.choose_strategy()


@pytest.mark.parametrize("index, chief", [(0, True), ("0", True), (1, False), ("1", False)])
def test_the_first_worker_keeps_the_run_also_if_its_index_is_a_text(monkeypatch, index, chief):
    task = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": index}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(task))
    monkeypatch.setattr(gan.tf.distribute, "MultiWorkerMirroredStrategy", lambda: "strategy")
    assert gan.choose_strategy() == ("strategy", chief)
