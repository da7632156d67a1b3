"""What triton makes of the kernel for real GPUs; compiling needs none."""

import re
from types import SimpleNamespace

import pytest
import torch

from hf_lpsgd.optim.kernels import cuda

SCALARS = ("grad_weight", "rho", "eps", "weight_decay", "sign", "lr_scale", "bound", "momentum_unit")


@pytest.fixture
def compile_kernel(load_kernel):
    kernel = load_kernel(interpret=False)
    from triton import language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    def run(capability, param, grad, buffer, lr="fp32", measure=False, stochastic=False):
        constants = {
            "PARAM_DTYPE": getattr(tl, param),
            "GRAD_DTYPE": getattr(tl, grad),
            "BUFFER_DTYPE": buffer and getattr(tl, buffer),
            "LR_IS_TENSOR": lr.startswith("*"),
            "MEASURE": measure,
            "STOCHASTIC": stochastic,
            "BLOCK": cuda.BLOCK,
        }
        signature = {"table": "*i64", "tensor_of_block": "*i32", "lr": lr, **dict.fromkeys(SCALARS, "fp32")}
        signature.update(squares="*fp32", key0="i32", key1="i32")
        signature.update(dict.fromkeys(constants, "constexpr"))
        aligned = {(index,): [["tt.divisibility", 16]] for index in range(2)}
        source = ASTSource(kernel.lp_step, signature, constants, aligned)
        compiled = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": cuda.NUM_WARPS})
        return compiled.asm["ptx"]

    return run


@pytest.mark.covering("capability", "stochastic")
@pytest.mark.parametrize(
    ("param", "grad", "buffer", "loads", "stores"),
    [
        # Each thread has 8 elements of each tensor, and moves 4 of float32 or 8 of 2 bytes at a time.
        ("float32", "float32", "float32", 6, 4),
        ("float32", "float32", None, 4, 2),
        ("bfloat16", "bfloat16", "bfloat16", 3, 2),
        ("float16", "float16", "float16", 3, 2),
        ("bfloat16", "bfloat16", "float32", 4, 3),
    ],
)
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("capability", [75, 80, 90])
def test_whole_blocks_are_read_once_and_written_once_16_bytes_at_a_time(
    compile_kernel, capability, stochastic, param, grad, buffer, loads, stores
):
    ptx = compile_kernel(capability, param, grad, buffer, stochastic=stochastic)
    assert len(re.findall(r"ld\.global\.v4\.b32", ptx)) == loads
    assert len(re.findall(r"st\.global\.v4\.b32", ptx)) == stores
    assert not re.search(r"(ld|st)\.local", ptx)  # no register is spilled
    # Each thread stores where it has loaded. Threads exchange elements only where the tensors differ in width.
    mixed = buffer not in (None, param)
    assert (".shared" in ptx, "bar.sync" in ptx) == (mixed, mixed)


def test_bfloat16_is_rounded_to_nearest(compile_kernel):
    ptx = compile_kernel(90, "bfloat16", "bfloat16", "bfloat16")
    assert re.search(r"cvt\.rn\.bf16", ptx)
    assert not re.search(r"cvt\.rz\.bf16", ptx)


def test_with_stochastic_rounding_nothing_is_rounded_to_nearest(compile_kernel):
    ptx = compile_kernel(90, "bfloat16", "bfloat16", "bfloat16", stochastic=True)
    assert not re.search(r"cvt\.r.\.bf16", ptx)
    assert len(re.findall(r"mul\.lo\.s32", ptx)) >= 2 * 8  # of the random numbers of a thread's 8 elements


def test_indices_within_a_tensor_are_of_64_bits(compile_kernel):
    ptx = compile_kernel(90, "float32", "float32", "float32")
    # The number of a block is made 64 bits wide before it is multiplied by the elements of a block (shifted by 10), so
    # that tensors may have more than 2^31 elements.
    assert re.search(r"shl\.b64\s+%rd\d+, %rd\d+, 1[02]", ptx)
    assert not re.search(r"shl\.b32\s+%r\d+, %r\d+, 1[02]", ptx)


def test_a_learning_rate_on_the_device_is_read_there(compile_kernel):
    number = compile_kernel(90, "float32", "float32", None)
    tensor = compile_kernel(90, "float32", "float32", None, lr="*fp32")
    assert tensor.count("ld.global") == number.count("ld.global") + 1


@pytest.mark.parametrize("buffer", ["float32", None])
def test_what_is_measured_costs_one_number_per_block_and_no_other_access_of_memory(compile_kernel, buffer):
    with_it, without = (compile_kernel(90, "float32", "float32", buffer, measure=flag) for flag in (True, False))
    for kind in (r"ld\.global", r"st\.global\.v4"):
        assert len(re.findall(kind, with_it)) == len(re.findall(kind, without))
    assert not re.search(r"(ld|st)\.local", with_it)


def test_the_table_tells_where_each_tensor_and_its_blocks_are_and_whether_16_bytes_can_be_moved_at_a_time():
    with torch.device("meta"):  # a default device must not matter
        table = cuda._table(((16, 64, 160), (32, 80, 176), (48, 100, 0), (2049, 5, 1024), (0, 2, 7)))
        tensor_of_block = cuda._tensor_of_block((2049, 5, 1024))
    assert table.tolist() == [
        [16, 32, 48, 2049, 0, 1, 0],
        [64, 80, 100, 5, 3, 0, 2],
        [160, 176, 0, 1024, 4, 1, 7],
    ]
    assert tensor_of_block.tolist() == [0, 0, 0, 1, 2]
    assert (table.dtype, tensor_of_block.dtype) == (torch.int64, torch.int32)


class OnDevice:
    """Stands for a tensor of the size that is the second half of its key."""

    def __init__(self, given):
        self.nbytes = given[1]

    def pin_memory(self):
        return self

    def to(self, device, non_blocking):
        return self


def test_tables_are_kept_while_they_fit_and_never_made_in_a_capture(monkeypatch):
    stream, capturing = SimpleNamespace(record_event=lambda: None), False
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    uploads = cuda._Uploads()
    size = uploads.least_bytes

    def get(key, size=size):
        return uploads.get(OnDevice, (key, size), torch.device("cuda"))

    first = [get(key) for key in range(200)]
    again = [get(key) for key in range(200)]
    assert all(one is other for one, other in zip(first, again, strict=True))
    capturing = True
    assert get("new") is None
    assert get(7) is first[7]
    assert uploads.of_graphs == {first[7]}
    capturing = False
    uploads.most_bytes = 150 * size
    get("one more", 1)  # which counts as much
    assert len(uploads.latest) == 150
    get("large", 149 * size - 1)
    assert [given[0] for _, _, given in uploads.latest] == ["one more", "large"]
    assert uploads.bytes == 150 * size - 1


def test_a_table_copied_on_another_stream_is_waited_for_but_in_a_capture(monkeypatch):
    waits, recorded, capturing = [], [], False

    class Copied(OnDevice):
        def record_stream(self, stream):
            recorded.append(stream)

    streams = [SimpleNamespace(record_event=lambda: "copied", wait_event=waits.append) for _ in range(2)]
    current = streams[0]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    uploads = cuda._Uploads()

    def get():
        return uploads.get(Copied, ("table", 1), torch.device("cuda"))

    get()
    get()
    assert waits == []
    current = streams[1]
    get()
    assert (waits, recorded) == (["copied"], [streams[1]])
    capturing = True
    get()
    assert waits == ["copied"]
