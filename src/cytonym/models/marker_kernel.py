"""The features of NeXtMarker on a CPU: from raw pixels to pooled features in one pass.

As separate tensor operations most of the time goes into moving [B, C, E, S, S] arrays through memory. Here one marker of
64 cells at a time stays in the core's cache, pixel by pixel with the cells side by side, so that every step is
arithmetic on full vector registers whatever the sizes of window, kernel and panel.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

CELLS = 64
"""Taken side by side. A constant, so that the compiler fills the registers and a cell's result is the same in any place."""

LOG2_E = math.log2(math.e)
EXP2 = tuple(np.float32(math.log(2) ** i / math.factorial(i)) for i in range(7))
"""Taylor series of 2^x, exact to 1e-8 for |x| <= 1/2."""


def pooled_features(
    windows: np.ndarray, gain: np.ndarray, shift: np.ndarray, weights: np.ndarray, pool: np.ndarray, stride: int
) -> np.ndarray:
    """Sigmoids, convolution, saturating rectifier and pooling.

    Parameters
    ----------
    windows
        u1, u2 or f4 [B, C, S, S], raw pixels. Each type is compiled at its first use.
    gain, shift
        f4 [C, E] and [C]: the sigmoid of a pixel x is 1 / (1 + exp(shift - gain x)), less its value at x = 0.
    weights
        f4 [C, K, E, k, k], the convolution of each marker.
    pool
        f4 [P, P], weights of its positions.
    stride
        Step of the convolution in pixels.

    Returns
    -------
    f4 [B, C * K], marker-major.

    Raises
    ------
    ValueError
        The windows have another number of channels, are not square, or are not those that the pooling is for.
    """
    c, k = weights.shape[:2]
    least = max(len(pool) - 1, 0) * stride + weights.shape[-1]
    if windows.ndim != 4 or windows.shape[1] != c or windows.shape[2] != windows.shape[3] or windows.shape[2] < least:
        msg = f"Expected square windows [B, {c}, S, S] of at least {least} px, got {list(windows.shape)}."
        raise ValueError(msg)
    taps = np.ascontiguousarray(weights.reshape(c, k, -1).transpose(0, 2, 1))
    pooled = np.zeros((len(windows), c, k), dtype=np.float32)
    _pool(np.ascontiguousarray(windows), gain, shift, taps, weights.shape[-1], pool, stride, pooled)
    return pooled.reshape(len(windows), c * k)


def binned(windows: np.ndarray, n: int) -> np.ndarray:
    """Means of squares of n x n pixels: u1, u2 or f4 [B, C, S, S] -> f4 [B, C, S // n, S // n]."""
    side = windows.shape[2] // n
    means = np.empty((*windows.shape[:2], side, windows.shape[3] // n), dtype=np.float32)
    _average(np.ascontiguousarray(windows), n, means)
    return means


@njit(nogil=True, cache=True)
def _average(windows, n, means):
    share = np.float32(1 / (n * n))
    for cell in range(means.shape[0]):
        for marker in range(means.shape[1]):
            for y in range(means.shape[2]):
                for x in range(means.shape[3]):
                    total = np.float32(0)
                    for row in range(y * n, (y + 1) * n):
                        for column in range(x * n, (x + 1) * n):
                            total += np.float32(windows[cell, marker, row, column])
                    means[cell, marker, y, x] = total * share


@njit(nogil=True, cache=True, fastmath={"nsz", "arcp", "contract", "reassoc"}, error_model="numpy")
def _pool(windows, gain, shift, taps, kernel, pool, stride, pooled):
    n_cells, n_markers, side, _ = windows.shape
    n_exposures, n_features, n_positions, area = gain.shape[1], taps.shape[2], len(pool), side * side
    pixels = np.zeros((area, CELLS), dtype=np.float32)
    signal = np.empty((n_exposures * area, CELLS), dtype=np.float32)
    answer = np.empty((n_features, CELLS), dtype=np.float32)
    total = np.empty((n_features, CELLS), dtype=np.float32)
    for marker in range(n_markers):
        if gain[marker, 0] == 0:
            continue
        for first in range(0, n_cells, CELLS):
            last = min(first + CELLS, n_cells)
            for cell in range(first, last):
                window = windows[cell, marker].reshape(-1)
                for i in range(area):
                    pixels[i, cell - first] = np.float32(window[i])
            for exposure in range(n_exposures):
                into = signal[exposure * area : (exposure + 1) * area]
                _normalize(pixels, gain[marker, exposure], shift[marker], into)
            total[:] = 0
            for row in range(n_positions):
                for column in range(n_positions):
                    answer[:] = 0
                    tap = 0
                    for exposure in range(n_exposures):
                        for dy in range(kernel):
                            at = exposure * area + (row * stride + dy) * side + column * stride
                            for dx in range(kernel):
                                for k in range(n_features):
                                    weight = taps[marker, tap, k]
                                    for i in range(CELLS):
                                        answer[k, i] += weight * signal[at + dx, i]
                                tap += 1
                    weight = pool[row, column]
                    for k in range(n_features):
                        for i in range(CELLS):
                            h = max(answer[k, i], np.float32(0))
                            total[k, i] += weight * h / (np.float32(1) + h)
            for cell in range(first, last):
                for k in range(n_features):
                    pooled[cell, marker, k] = total[k, cell - first]


@njit(nogil=True, cache=True, fastmath={"nsz", "arcp", "contract", "reassoc"}, error_model="numpy")
def _normalize(pixels, gain, shift, signal):
    """The sigmoid; e^z is 2 to a whole number, set as the bits of an exponent, times a short series."""
    one, highest = np.float32(1), np.float32(126)
    offset, factor = shift * np.float32(LOG2_E), gain * np.float32(LOG2_E)
    floor = one / (one + np.float32(math.exp(shift)))
    for row in range(len(pixels)):
        for i in range(CELLS):
            z = min(max(offset - factor * pixels[row, i], -highest), highest)
            whole = np.floor(z + np.float32(0.5))
            x = z - whole
            series = EXP2[6]
            series = series * x + EXP2[5]
            series = series * x + EXP2[4]
            series = series * x + EXP2[3]
            series = series * x + EXP2[2]
            series = series * x + EXP2[1]
            series = series * x + EXP2[0]
            power = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)
            value = one / (one + series * power) - floor
            signal[row, i] = value if pixels[row, i] > 0 else np.float32(0)
