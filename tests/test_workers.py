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
from conftest import PIPES, ROOT, TINY, arguments

import gan

posix = pytest.mark.skipif(sys.platform == "win32", reason="TensorFlow has no workers on Windows")


def start_two(folder, *words):
    """Start two workers of one cluster, with words after python, in the folders 0 and 1."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]  # finds free ports
    cluster = {"worker": [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]}
    for each in sockets:
        each.close()
    workers = []
    for index in (0, 1):
        (folder / str(index)).mkdir()
        task = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        environment = os.environ | {"TF_CONFIG": json.dumps(task)}
        command, place = [sys.executable, *map(str, words)], folder / str(index)
        worker = subprocess.Popen(command, cwd=place, env=environment, text=True, **PIPES)
        workers.append(worker)
    return workers


def finish(workers):
    """Return (exit status, stdout, stderr) of each worker."""
    try:
        ends = [worker.communicate(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [(worker.returncode, *end) for worker, end in zip(workers, ends)]


@posix
def test_two_workers_two_devices_and_one_replica_get_nearly_the_same_weights(tmp_path):
    script = ROOT / "tests" / "workers.py"
    workers = start_two(tmp_path, script, "worker")
    subprocess.run([sys.executable, script], cwd=tmp_path, check=True, timeout=120)
    ends = finish(workers)
    assert [status for status, *_ in ends] == [0, 0], ends
    names = "0/worker.npz", "1/worker.npz", "mirrored.npz", "one.npz"
    for first, second, mirrored, one in zip(
        *(np.load(tmp_path / name).values() for name in names), strict=True
    ):
        assert np.array_equal(first, second)
        assert np.allclose(first, mirrored, atol=1e-4)
        if first.ndim == 2:  # a bias before batch normalisation has no gradient but rounding
            assert np.allclose(first, one, atol=1e-4)


@posix
def test_two_workers_go_on_as_one_and_when_one_is_killed_the_other_says_how_to_go_on(
    data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert gan.main(arguments(DATA=data, **TINY | {"LR_DECAY": False, "EPOCHS": 1})) == 0
    run = tmp_path / "samples" / "dots-001"
    words = ROOT / "gan.py", "--run", run, "EPOCHS=100000"
    workers = start_two(tmp_path, *words)
    deadline = time.monotonic() + 100
    while not (run / "epoch-003.png").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    workers[1].kill()
    (status, out, err), (killed, silent, _) = finish(workers)
    assert (status, killed) == (1, -signal.SIGKILL)
    assert "replicas: 2" in out and " 3/100000" in out and silent == ""
    assert not list((tmp_path / "1").iterdir())  # the first one keeps the run
    [told] = [line for line in err.splitlines() if line.startswith("gan.py")]
    assert f'--resume --run "{run}"' in told and "Traceback" not in err
    epochs = len(list(run.glob("epoch-*.png")))
    assert gan.main(["--resume", f"EPOCHS={epochs}"]) == 0


def test_all_gpus_of_a_machine_share_training(monkeypatch):
    monkeypatch.setattr(gan.tf.config, "list_physical_devices", lambda kind: ["GPU"] * 3)
    monkeypatch.setattr(gan.tf.distribute, "MirroredStrategy", lambda: "all three")
    assert gan.choose_strategy() == "all three"
