"""MATLAB's imresize as a loop: the oracle of everything that resizes."""

from __future__ import annotations

import numpy as np


def slow_imresize_axis(x: np.ndarray, out: int, cubic: bool) -> np.ndarray:
    """MATLAB's imresize along the first axis, one output and one tap at a time, in MATLAB's one-based coordinates."""

    def kernel(t: float) -> float:
        t = abs(t)
        if not cubic:
            return max(0.0, 1.0 - t)
        if t <= 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t <= 2 else 0.0

    n = len(x)
    scale = out / n
    stretch = min(scale, 1.0)
    radius = (2.0 if cubic else 1.0) / stretch
    y = np.zeros((out, *x.shape[1:]))
    for i in range(1, out + 1):
        u = i / scale + 0.5 * (1 - 1 / scale)
        taps = [
            (j, kernel((u - j) * stretch)) for j in range(int(np.floor(u - radius)) - 1, int(np.ceil(u + radius)) + 2)
        ]
        total = sum(weight for _, weight in taps)
        for j, weight in taps:
            while not 1 <= j <= n:  # mirrored, the edge pixel twice
                j = 1 - j if j < 1 else 2 * n + 1 - j
            y[i - 1] += weight / total * x[j - 1]
    return y
