"""fully_shard, with parameters and state in shards of uneven sizes, against one process."""

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch
from reference import annealed_p
from versions import runs_fsdp2_on_a_cpu

pytestmark = runs_fsdp2_on_a_cpu

WORKER = Path(__file__).with_name("fsdp2_worker.py")
spec = importlib.util.spec_from_file_location("fsdp2_worker", WORKER)
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)

CASES = [worker.case_name(*case) for case in worker.CASES]
RESUMED = [worker.case_name(*case) for case in worker.RESUMED]
EXPECTED_P = [annealed_p("cosine", worker.P_MAX, step, worker.STEPS) for step in range(worker.STEPS)]
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
IN_BFLOAT16 = 1e-3  # where gradients that were added up in another order are rounded to another neighbour
IN_FLOAT8 = 0.6  # of the momentum in one tensor: other shards draw other random numbers
SHARDED = "(Shard(dim=0),)"


def launch(forks, processes, action, folder):
    for rank in forks.run_ranks(processes, WORKER, action, folder):
        assert rank.status == 0, rank.output
    ranks = [torch.load(folder / f"{action}-{rank}.pt") for rank in range(processes)]
    assert [results.pop("world_size") for results in ranks] == [processes] * processes
    return ranks


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """In tensors this small, threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fsdp2")


@pytest.fixture(scope="module")
def two(forks, folder):
    """What each of two processes saw, once it is sure that they share out parameters and state."""
    ranks = launch(forks, 2, "train", folder)
    for name in CASES:
        for result in (results[name] for results in ranks):
            assert set(result["placements"].values()) == {SHARDED}
            assert set(result["buffer_placements"].values()) == ({SHARDED} if name.startswith("lpsgdm") else set())
    return ranks


@pytest.fixture(scope="module")
def three(forks, two, folder):
    """The same for three processes that went on from the checkpoints of two."""
    ranks = launch(forks, 3, "resume", folder)
    for results in ranks:
        assert all(set(result["placements"].values()) == {SHARDED} for result in results.values())
    return ranks


@pytest.fixture(scope="module")
def one():
    """The runs on this process alone, with plain tensors."""
    torch.manual_seed(0)
    start = worker.TinyTransformer().state_dict()
    results = {
        worker.case_name(*case): worker.Run(*case, sharded=False).train(0, worker.STEPS).result()
        for case in worker.CASES
    }
    for result in results.values():
        assert set(result["placements"].values()) == {None}
        assert all(distance(result["weights"][name], start[name]) > 1e-3 for name in start if start[name].any())
    return results


def distance(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def largest_distance(actual, expected):
    assert actual.keys() == expected.keys()
    return max((distance(actual[name], expected[name]) for name in expected), default=0.0)


def tolerance_of(name):
    if "float8" in name:
        return IN_FLOAT8
    return IN_BFLOAT16 if "bfloat16" in name else TOLERANCE[name.rpartition("-")[2]]


def equal(actual, expected):
    return actual.keys() == expected.keys() and all(torch.equal(actual[name], expected[name]) for name in expected)


def test_shards_are_of_uneven_sizes_and_one_is_empty(two):
    for name in CASES:
        rows = [results[name]["own_rows"] for results in two]
        assert [rank["first"] for rank in rows] == [1, 0]
        assert [rank["blocks.0.up.weight"] for rank in rows] == [7, 6]
        assert [results[name]["own_buffer_rows"] for results in two] == (
            rows if name.startswith("lpsgdm") else [{}, {}]
        )


@pytest.mark.parametrize("name", CASES)
def test_sharded_training_ends_as_one_process_does(name, two, one):
    tolerance = tolerance_of(name)
    for results in two:
        assert largest_distance(results[name]["weights"], one[name]["weights"]) <= tolerance
        assert largest_distance(results[name]["buffers"], one[name]["buffers"]) <= tolerance


@pytest.mark.parametrize("name", CASES)
def test_p_is_the_same_on_every_process_and_falls_from_p_max_to_2(name, two, one):
    for result in (one[name], *(results[name] for results in two)):
        assert result["ps"] == EXPECTED_P
    assert (EXPECTED_P[0], EXPECTED_P[-1]) == (20.0, 2.0)


@pytest.mark.parametrize("name", [name for name in CASES if "layerwise" in name])
def test_the_step_in_the_backward_pass_is_the_ordinary_one_to_the_bit(name, two):
    for results in two:
        layerwise, ordinary = results[name], results[name.replace("layerwise, ", "")]
        assert equal(layerwise["weights"], ordinary["weights"])
        assert equal(layerwise["buffers"], ordinary["buffers"])
        assert layerwise["grad_rms"] == ordinary["grad_rms"]
        assert layerwise["gradients_held"] == 1
        assert ordinary["gradients_held"] > 1


@pytest.mark.parametrize("name", [name for name in CASES if "measuring" in name])
def test_the_reference_size_is_measured_over_all_shards_and_the_same_on_every_process(name, two, one):
    sizes = [results[name]["grad_rms"] for results in two]
    assert sizes[0] == sizes[1] == pytest.approx(one[name]["grad_rms"], rel=1e-6)
    assert isinstance(sizes[0], float)
    if name in RESUMED:
        assert [results["resumed"][name]["grad_rms"] for results in two] == sizes


def test_parameters_replicated_in_one_mesh_dimension_and_sharded_in_the_other_end_as_one_process_does(two, one):
    for results in two:
        assert set(results["hybrid"]["buffer_placements"].values()) == {"(Replicate(), Shard(dim=0))"}
        assert largest_distance(results["hybrid"]["weights"], one[worker.case_name(*worker.HYBRID)]["weights"]) <= 1e-5


@pytest.mark.parametrize("grad", worker.GRADIENT_PLACEMENTS)
@pytest.mark.parametrize("param", worker.PLACEMENTS)
def test_a_gradient_placed_otherwise_than_its_parameter_gives_the_same_step(param, grad, two):
    expected, _, _ = worker.steps_with_placed_gradients(None, None, None)
    for results in two:
        actual, *placements = results["placed"][param, grad]
        assert placements == [str((worker.PLACEMENTS[param],))] * 2
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_resumed_from_a_distributed_checkpoint_ends_bit_for_bit_as_the_uninterrupted_one(name, two):
    for results in two:
        resumed, straight = results["resumed"][name], results[name]
        assert equal(resumed["weights"], straight["weights"])
        assert equal(resumed["buffers"], straight["buffers"])
        dtypes = {"bfloat16 momentum": torch.bfloat16, "float8 momentum": torch.uint8}
        dtype = next((dtypes[key] for key in dtypes if key in name), torch.float32)
        assert resumed["buffer_dtypes"] == ({dtype} if name.startswith("lpsgdm") else set())
        assert resumed["ps"] == straight["ps"][worker.HALF :]
        assert resumed["lr"] == straight["lr"]


def test_p_in_force_is_in_the_distributed_checkpoint(two):
    for results in two:
        assert results["resumed"]["lpsgdm-single-float32"]["p_loaded"] == EXPECTED_P[worker.HALF - 1]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", RESUMED)
def test_a_checkpoint_of_two_processes_goes_on_in_three(name, three, one):
    for results in three:
        assert results[name]["ps"] == EXPECTED_P[worker.HALF :]
        assert largest_distance(results[name]["weights"], one[name]["weights"]) <= tolerance_of(name)
        assert largest_distance(results[name]["buffers"], one[name]["buffers"]) <= tolerance_of(name)


def test_a_checkpoint_of_two_processes_goes_on_in_one_that_does_not_shard(two, one, folder):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        resumed = worker.resume_all(folder, sharded=False)
    for name in RESUMED:
        assert resumed[name]["ps"] == EXPECTED_P[worker.HALF :]
        assert largest_distance(resumed[name]["weights"], one[name]["weights"]) <= tolerance_of(name)
        assert largest_distance(resumed[name]["buffers"], one[name]["buffers"]) <= tolerance_of(name)
