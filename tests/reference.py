"""The two updates as the paper writes them, in float64 NumPy, slow and readable: the oracle of the tests."""

import math

import numpy as np


def paper_p(p_max, epoch, epochs):
    """p_s for s = `epoch`, counted from 1, of S = `epochs`."""
    return 2 + (p_max - 2) * (1 + np.cos(np.pi * (epoch - 1) / (epochs - 1))) / 2


def annealed_p(schedule, p_max, index, length):
    """p at step `index`, counted from 0, of the `length` steps of a run without warm-up; `cosine` is the paper's."""
    progress = min(index / max(length - 1, 1), 1.0)
    share = {"cosine": (1 + math.cos(math.pi * progress)) / 2, "linear": 1 - progress, "constant": 1}[schedule]
    return 2 + (p_max - 2) * share


def lpsgd_step(theta, gradient, *, lr, p, eps=1e-8, weight_decay=0.0):
    rho = (p - 2) / (p - 1)
    return (1 - lr * weight_decay) * theta - lr * gradient / (np.abs(gradient) + eps) ** rho


def lpsgdm_step(theta, mean, gradient, *, lr, p, momentum=0.9, eps=1e-8, weight_decay=0.0):
    mean = momentum * mean + (1 - momentum) * gradient
    return lpsgd_step(theta, mean, lr=lr, p=p, eps=eps, weight_decay=weight_decay), mean


def rescaled(mean, *, p, eps=1e-8, r=None, bounded=True):
    """What lr is multiplied by: the paper's, or with a reference size `r` of the gradient."""
    rho = (p - 2) / (p - 1)
    if r is None:
        return mean / (np.abs(mean) + eps) ** rho
    if bounded:
        mean = np.clip(mean, -r, r)
    return (mean / r) / (np.abs(mean) / r + eps / r) ** rho


def root_mean_square(arrays):
    return np.sqrt(np.mean(np.concatenate([np.ravel(array) for array in arrays]) ** 2))


def as_float64(tensor):
    return tensor.detach().cpu().double().clone().numpy()
