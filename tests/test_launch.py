"""The fork server of these tests."""

import os
import time

import pytest
from launch import Forks


def test_a_server_that_has_ended_is_told_and_not_waited_for(tmp_path):
    forks = Forks(tmp_path, os.environ["FORK_SERVER"], dict(os.environ), ["no_such_module"])
    with pytest.raises(AssertionError, match=r"fork_server\.py has ended"):
        forks.run("script.py")
    forks.close()


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_still_runs_when_the_tests_end_is_ended(tmp_path):
    (tmp_path / "sleep.py").write_text("import time; time.sleep(200)")
    forks = Forks(tmp_path, os.environ["FORK_SERVER"], dict(os.environ))
    fork = forks.start("sleep.py", cwd=tmp_path)
    assert is_there(fork.pid)
    forks.close()
    end = time.monotonic() + 60
    while is_there(fork.pid):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_two_forks_draw_other_random_numbers(forks, tmp_path):
    (tmp_path / "draw.py").write_text("import numpy, random; print(numpy.random.rand(), random.random())")
    first, second = (forks.run("draw.py", cwd=tmp_path).output.split() for _ in range(2))
    assert all(one != other for one, other in zip(first, second, strict=True))
