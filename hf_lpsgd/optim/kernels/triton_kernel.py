"""The Triton kernel of the fused step; importing this module needs triton."""

import torch
import triton
import triton.language as tl

from .rounding import FLOAT8

DTYPES = {None: None, torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
DTYPES[FLOAT8] = tl.uint8  # integers, so no GPU needs to know float8


# fmt: off
@triton.jit(do_not_specialize=["key0", "key1"])
def lp_step(
    table, tensor_of_block, squares, key0, key1, lr,
    PARAM_DTYPE: tl.constexpr, GRAD_DTYPE: tl.constexpr, BUFFER_DTYPE: tl.constexpr,
    LR_IS_TENSOR: tl.constexpr, MEASURE: tl.constexpr, STOCHASTIC: tl.constexpr,
    grad_weight, rho, eps, weight_decay, sign, lr_scale, bound, momentum_unit, BLOCK: tl.constexpr,
):
    """Update one block of one tensor.

    `table` has a row of seven int64 per tensor: the addresses of parameter, gradient and momentum buffer, the number
    of elements, the number of the first block, whether all addresses are multiples of 16, and the number of the
    parameter in its optimizer. `tensor_of_block` gives the row of each block. BUFFER_DTYPE is None for LPSGD. With
    MEASURE, the sum of the squares of a block's means, or for LPSGD of its gradients, goes to `squares`. With
    STOCHASTIC, what is stored in 16 bits or 8 is rounded as in rounding.py; `key0` and `key1` are those of the step.
    """
    block = tl.program_id(0)
    row = table + tl.load(tensor_of_block + block) * 7
    param = tl.load(row).to(tl.pointer_type(PARAM_DTYPE))
    grad = tl.load(row + 1).to(tl.pointer_type(GRAD_DTYPE))
    buffer = param if BUFFER_DTYPE is None else tl.load(row + 2).to(tl.pointer_type(BUFFER_DTYPE))
    start = (block - tl.load(row + 4)) * BLOCK
    remaining = tl.load(row + 3) - start
    if LR_IS_TENSOR:
        lr = tl.load(lr).to(tl.float32)
    if STOCHASTIC:
        number = tl.load(row + 6).to(tl.uint32)
        key0 = _mix(key0.to(tl.uint32, bitcast=True) ^ _mix(number + 0x9E3779B9, 0), 0)
        key1 = _mix(key1.to(tl.uint32, bitcast=True) + key0, 0)
    # Most blocks are whole, and then each thread can load and store 16 bytes at a time.
    if (remaining >= BLOCK) & (tl.load(row + 5) != 0):
        _update(
            tl.multiple_of(param, 16), tl.multiple_of(grad, 16), tl.multiple_of(buffer, 16),
            start, remaining, squares + block, key0, key1,
            lr, grad_weight, rho, eps, weight_decay, sign, lr_scale, bound, momentum_unit,
            BUFFER_DTYPE is not None, MEASURE, STOCHASTIC, True, BLOCK,
        )
    else:
        _update(
            param, grad, buffer, start, remaining, squares + block, key0, key1,
            lr, grad_weight, rho, eps, weight_decay, sign, lr_scale, bound, momentum_unit,
            BUFFER_DTYPE is not None, MEASURE, STOCHASTIC, False, BLOCK,
        )
# fmt: on


@triton.jit
def _add(a, b):
    return a + b


@triton.jit
def _mix(word, key):
    word ^= word >> 16
    word *= 0x21F0AAAD
    word ^= word >> 15
    word += key
    word *= 0xD35A2D97
    return word ^ (word >> 15)


@triton.jit
def _rounded(value, random, unit, DTYPE: tl.constexpr, STOCHASTIC: tl.constexpr):
    """Return `value` as DTYPE, rounded to the nearest, or stochastically as in rounding.py where DTYPE is narrower."""
    bits = value.to(tl.uint32, bitcast=True)
    if STOCHASTIC and DTYPE == tl.bfloat16:  # noqa: SIM300
        result = tl.where(value == value, bits + random, 0x7FC00000) >> 16
        return result.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    elif STOCHASTIC and DTYPE != tl.float32:  # noqa: SIM300
        last: tl.constexpr = 8 if DTYPE == tl.float16 else 0  # noqa: SIM300
        infinity: tl.constexpr = 0x7C << last
        largest: tl.constexpr = infinity if last == 8 else infinity - 1
        # A division need not be exact; 1 / 2^e has the exponent -e.
        inverse = 0x7F000000 - tl.full((), unit, tl.float32).to(tl.int32, bitcast=True)
        sizes = tl.abs(value * inverse.to(tl.float32, bitcast=True))
        is_subnormal = sizes < 6.103515625e-05
        above = tl.where(is_subnormal, sizes + 6.103515625e-05, sizes).to(tl.int32, bitcast=True)
        above -= tl.where(is_subnormal, 0x38800000, 0x38000000)
        result = tl.minimum((above + (random.to(tl.int32) << 5 >> last)) >> (21 - last), largest)
        result = tl.where((bits & 0x7FFFFFFF) == 0x7F800000, infinity, result)
        result = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, infinity | 2 << last, result)
        result |= ((bits >> (24 - last)) & (0x80 << last)).to(tl.int32)
        if last == 8:
            return result.to(tl.uint16).to(tl.float16, bitcast=True)
        else:
            return result.to(tl.uint8)
    else:
        return value.to(DTYPE)


# fmt: off
@triton.jit
def _update(
    params, grads, buffers, start, remaining, squares, key0, key1,
    lr, grad_weight, rho, eps, weight_decay, sign, lr_scale, bound, momentum_unit,
    HAS_BUFFER: tl.constexpr, MEASURE: tl.constexpr, STOCHASTIC: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # fmt: on
    offsets = tl.arange(0, BLOCK)
    mask = None if WHOLE else offsets < remaining
    random = offsets  # unused, unless it is drawn
    if STOCHASTIC:
        places = start.to(tl.uint32) + offsets.to(tl.uint32)
        words = _mix((places >> 1) ^ key0, key1)
        random = tl.where((places & 1) == 0, words & 0xFFFF, words >> 16)
    params, grads, buffers = params + start + offsets, grads + start + offsets, buffers + start + offsets
    param = tl.load(params, mask=mask).to(tl.float32)
    mean = sign * tl.load(grads, mask=mask).to(tl.float32)
    if HAS_BUFFER:
        buffer, unit = tl.load(buffers, mask=mask), 1.0
        if buffers.dtype.element_ty == tl.uint8:
            buffer, unit = (buffer.to(tl.uint16) << 8).to(tl.float16, bitcast=True), momentum_unit
        buffer = buffer.to(tl.float32) * unit
        # Of the two ways to interpolate, the one with the smaller error, as torch.lerp does.
        change = mean - buffer
        mean = tl.where(grad_weight < 0.5, buffer + grad_weight * change, mean - (1.0 - grad_weight) * change)
        tl.store(buffers, _rounded(mean, random, unit, buffers.dtype.element_ty, STOCHASTIC), mask=mask)
    if MEASURE:
        square = mean * mean if WHOLE else tl.where(offsets < remaining, mean * mean, 0.0)
        tl.store(squares, tl.reduce(square, 0, _add))
    # Written so that NaN stays NaN.
    mean = tl.where(mean > bound, bound, tl.where(mean < -bound, -bound, mean))
    # magnitude^-rho, as exp2(-rho * log2(magnitude)). As in cpu_kernel.cpp, it = 2^exponent * (1 + z) with 1 + z
    # in [sqrt(1/2), sqrt(2)), and log2(1 + z) is a minimax polynomial with an absolute error of 3e-7: the hardware's
    # own log2 has a relative error, which the power magnifies where the magnitude is far from 1.
    magnitude = tl.maximum(tl.abs(mean) + eps, 1.1754943508222875e-38)
    bits = magnitude.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    z = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    log2 = 0.170634463429451
    log2 = log2 * z - 0.27269792556762695
    log2 = log2 * z + 0.297262579202652
    log2 = log2 * z - 0.3589618504047394
    log2 = log2 * z + 0.48046502470970154
    log2 = log2 * z - 0.7213758826255798
    log2 = log2 * z + 1.442699670791626
    scale = tl.exp2(-rho * exponent.to(tl.float32) - rho * (log2 * z))
    scale = tl.where((magnitude > 3.4028234663852886e38) & (rho > 0.0), 0.0, scale)
    param = (1.0 - lr * weight_decay) * param - (lr * lr_scale * mean) * scale
    tl.store(params, _rounded(param, random, 1.0, params.dtype.element_ty, STOCHASTIC), mask=mask)
