"""The real pynvml, talking to a stand-in driver library whose behaviour each test scripts."""

from __future__ import annotations

import shutil
import subprocess

import pytest

A, B = "11111111-0000-0000-0000-00000000000a", "22222222-0000-0000-0000-00000000000b"
TWO = {"STANDIN_DEVICES": f"GPU-{A}=NVIDIA A100,GPU-{B}=NVIDIA H100"}
MIG1, MIG2 = "MIG-33333333-0000-0000-0000-000000000001", "MIG-33333333-0000-0000-0000-000000000002"
GIB = 2**30
MEMORY = {"STANDIN_MEMORY": f"{2 * GIB} {GIB} {80 * GIB}"}
FIRST = "gpu = nvml.devices()[0]\n"


def test_devices_and_driver_are_listed(ask):
    answer = ask("answer([nvml.driver_version(), nvml.devices()])", **TWO)
    assert answer[0] == "580.65.06"
    assert [(gpu["uuid"], gpu["name"], gpu["mig"]) for gpu in answer[1]] == [
        (f"GPU-{A}", "NVIDIA A100", False),
        (f"GPU-{B}", "NVIDIA H100", False),
    ]


def test_no_driver_library_is_a_reason(ask_nobody):
    answer = ask_nobody("answer([nvml.devices(), nvml.driver_version(), nvml.find_uuid('x')])")
    assert all("Library Not Found" in item["missing"] for item in answer)


def test_no_pynvml_is_a_reason(ask):
    answer = ask("sys.modules['pynvml'] = None\nanswer(nvml.devices())", **TWO)
    assert "nvidia-ml-py is not installed" in answer["missing"]


def test_driver_mismatch_is_a_reason(ask):
    answer = ask("answer(nvml.devices())", STANDIN_ERRORS="nvmlInitWithFlags=18", **TWO)
    assert "version mismatch" in answer["missing"]


def test_memory_v2_excludes_driver_reserved(ask):
    answer = ask(FIRST + "answer(gpu.memory())", **TWO, **MEMORY)
    assert answer == {"used": 2 * GIB, "reserved": GIB, "total": 80 * GIB}


@pytest.mark.parametrize("code", [25, 3, 13])
def test_memory_falls_back_to_v1(ask, code):
    errors = f"nvmlDeviceGetMemoryInfo_v2={code}"
    answer = ask(FIRST + "answer(gpu.memory())", STANDIN_ERRORS=errors, **TWO, **MEMORY)
    assert answer["used"] == 3 * GIB, "version 1 counts what the driver reserved"
    assert "too old" in answer["reserved"]["missing"]


def test_old_driver_without_v2_symbol(ask_old):
    answer = ask_old(FIRST + "answer(gpu.memory())", **TWO, **MEMORY)
    assert answer["used"] == 3 * GIB
    assert answer["total"] == 80 * GIB


def test_memory_not_available_or_not_supported(ask):
    assert "N/A" in ask(FIRST + "answer(gpu.memory())", STANDIN_MEMORY="N/A 0 N/A", **TWO)["missing"]
    assert "Not Supported" in ask(FIRST + "answer(gpu.memory())", **TWO)["missing"]


def test_gpu_lost_between_two_queries(ask):
    code = """
    gpu = nvml.devices()[0]
    first = gpu.memory()
    os.environ["STANDIN_ERRORS"] = ",".join(f"nvmlDeviceGet{what}=15" for what in (
        "MemoryInfo_v2", "ComputeRunningProcesses_v3", "TotalEnergyConsumption"))
    answer([first, gpu.memory(), gpu.process_bytes(), gpu.energy_joules()])
    """
    answer = ask(code, STANDIN_PROCESSES="self=5", STANDIN_ENERGY="1", **TWO, **MEMORY)
    assert answer[0]["used"] == 2 * GIB
    assert all("GPU is lost" in item["missing"] for item in answer[1:])


def test_own_process_is_found_among_others(ask):
    code = FIRST + "answer([gpu.process_bytes(), gpu.process_bytes(77), gpu.processes()])"
    own, other, listed = ask(code, STANDIN_PROCESSES="77=4096,self=1000,78=N/A", **TWO)
    assert own == 1000
    assert other == 4096
    assert [process["pid"] for process in listed][::2] == [77, 78]
    assert "N/A" in listed[2]["used"]["missing"]


def test_own_process_listed_twice_is_summed(ask):
    answer = ask(FIRST + "answer(gpu.process_bytes())", STANDIN_PROCESSES="self=1000,self=24", **TWO)
    assert answer == 1024


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        ("", "no process"),
        ("1=4096,2=4096", "2 process(es), none under PID"),
        ("self=N/A", "answers N/A"),
        ("self=N/A,self=5", "answers N/A"),
    ],
)
def test_own_process_not_to_be_seen(ask, listed, reason):
    answer = ask(FIRST + "answer(gpu.process_bytes())", STANDIN_PROCESSES=listed, **TWO)
    assert reason in answer["missing"]


def test_host_pid_is_recognised_where_proc_shows_it(ask):
    unshare = shutil.which("unshare")
    prefix = (unshare or "", "--pid", "--fork")
    if unshare is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no right to make a PID namespace here")
    code = FIRST + "answer([os.getpid(), gpu.process_bytes()])"
    pid, used = ask(code, prefix=prefix, STANDIN_PROCESSES="host=2048", **TWO)
    assert pid == 1, "the process sees itself under another PID than the driver does"
    assert used == 2048


def test_energy_counter(ask):
    assert ask(FIRST + "answer(gpu.energy_joules())", STANDIN_ENERGY="12345", **TWO) == 12.345
    assert "Not Supported" in ask(FIRST + "answer(gpu.energy_joules())", **TWO)["missing"]


def test_torch_device_is_matched_by_uuid_not_by_index(ask):
    code = f"pretend_cuda('{B}', '{A}')\nanswer([nvml.find(d) for d in ('cuda', 'cuda:0', 'cuda:1')])"
    current, first, second = ask(code, CUDA_VISIBLE_DEVICES="1,0", **TWO)
    assert current == first
    assert first["uuid"] == f"GPU-{B}"
    assert second["uuid"] == f"GPU-{A}"


@pytest.mark.parametrize("form", [A, f"GPU-{A}"])
def test_uuid_in_any_form(ask, form):
    assert ask(f"answer(nvml.find_uuid('{form}'))", **TWO)["name"] == "NVIDIA A100"


def test_unknown_device(ask):
    answer = ask("answer([nvml.find_uuid('GPU-nowhere'), nvml.find('cpu')])", **TWO)
    assert "no device with the UUID" in answer[0]["missing"]
    assert "ran on cpu" in answer[1]["missing"]


def test_device_that_torch_cannot_show(ask):
    code = """
    cuda = pretend_cuda()
    def no_gpu(index): raise RuntimeError("Found no NVIDIA driver on your system.")
    cuda.get_device_properties = no_gpu
    answer(nvml.find("cuda:0"))
    """
    assert "Found no NVIDIA driver" in ask(code, **TWO)["missing"]


@pytest.mark.parametrize(
    ("reported", "visible"),
    [
        (A, MIG2),  # CUDA reports the parent, the environment names the instance
        (MIG2.removeprefix("MIG-"), ""),  # CUDA reports the instance itself
        (MIG2, f"{MIG2}"),
    ],
)
def test_mig_instance_is_used_instead_of_its_parent(ask, reported, visible):
    code = f"pretend_cuda('{reported}')\ngpu = nvml.find('cuda:0')\nanswer([gpu, gpu.energy_joules()])"
    mig = f"{MIG1}=1g.10gb,{MIG2}=2g.20gb"
    gpu, energy = ask(code, STANDIN_MIG=mig, STANDIN_ENERGY="5", CUDA_VISIBLE_DEVICES=visible, **TWO)
    assert gpu == {"uuid": MIG2, "name": "2g.20gb", "mig": True}
    assert "per GPU" in energy["missing"]


def test_mig_parent_alone_is_resolved_only_when_unambiguous(ask):
    code = f"answer(nvml.find_uuid('{A}'))"
    assert ask(code, STANDIN_MIG=f"{MIG1}=1g.10gb", **TWO)["uuid"] == MIG1
    assert "2 MIG instances" in ask(code, STANDIN_MIG=f"{MIG1}=x,{MIG2}=y", **TWO)["missing"]
    assert "0 MIG instances" in ask(code, STANDIN_MIG="", **TWO)["missing"]


def test_device_without_mig_support(ask):
    answer = ask(f"answer(nvml.find_uuid('{A}'))", STANDIN_ERRORS="nvmlDeviceGetMigMode=3", **TWO)
    assert answer["uuid"] == f"GPU-{A}"


def test_library_is_initialised_again_after_a_fork(ask):
    code = """
    import pynvml
    inits = []
    real = pynvml.nvmlInit
    pynvml.nvmlInit = lambda: (inits.append(os.getpid()), real())
    nvml.driver_version(), nvml.driver_version()
    read, write = os.pipe()
    if os.fork() == 0:
        nvml.driver_version()
        os.write(write, json.dumps(len(inits)).encode())
        os._exit(0)
    os.wait()
    answer([len(inits), json.loads(os.read(read, 10))])
    """
    assert ask(code, **TWO) == [1, 2]
