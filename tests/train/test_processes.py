"""Who a process is, by what launchers leave in the environment."""

import pytest

from jaxllm.train.processes import Place, find

SLURM = {
    "SLURM_JOB_ID": "70001",
    "SLURM_STEP_NODELIST": "gpu[07-09,12],big1",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
GKE = {"TPU_WORKER_ID": "3", "TPU_WORKER_HOSTNAMES": "a-0.svc,a-1.svc,a-2.svc,a-3.svc"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}, None),
        (
            {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"},
            Place("10.0.0.1:1234", 3, 2),
        ),
        # a task a node has all its devices
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, Place("gpu07:61809", 4, 2)),
        # of several tasks on a node each has one
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LOCALID": "1"}, Place("gpu07:61809", 4, 2, (1,))),
        # unless SLURM gave it one by itself
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "CUDA_VISIBLE_DEVICES": "3"}, Place("gpu07:61809", 4, 2)),
        (SLURM | {"SLURM_STEP_NODELIST": "n1,n2", "SLURM_NTASKS_PER_NODE": "1"}, Place("n1:61809", 4, 2)),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        (GKE, Place("a-0.svc:8476", 4, 3)),
        (
            GKE
            | {
                "MEGASCALE_NUM_SLICES": "2",
                "MEGASCALE_SLICE_ID": "1",
                "MEGASCALE_COORDINATOR_ADDRESS": "first.svc:9000",
            },
            Place("first.svc:8476", 8, 7),
        ),
    ],
)
def test_the_environment_says_which_process_this_is(environment, place):
    assert find(environment) == place


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "JAX_COORDINATOR_ADDRESS = '10.0.0.1': use HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_NUM_PROCESSES = '': a launcher with several"),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
            "JAX_NUM_PROCESSES = 'two'",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "process 2 of 2; number them from 0",
        ),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_ID = ''"),
    ],
)
def test_a_launcher_that_forgot_something_is_told(environment, sentence):
    with pytest.raises(ValueError, match=sentence):
        find(environment)
