"""The focal losses at 60 digits: the truth that every numerical test is judged by.

Inputs are converted exactly: a float32 (or bfloat16) number IS the question asked. Everything is
mpmath with unbounded exponents, so exp(-1e4) is an ordinary number; only the answers are rounded,
once, to float64 (below 1e-308: zero). Equal classes are computed once, so that a row of 1e5
classes takes a second at most, and a row's softmax is shared by all gammas, weights and calls.

    softmax_focal(z, weights, gamma)      one row             -> SoftmaxFocal
    batch(logits, weights, gamma)         rows                -> Batch, the same fields stacked
    one_hot(targets, classes, weight)     integer labels as weights
    sigmoid_focal(z, y, gamma, weight)    elementwise, broadcasting -> SigmoidFocal, by a reading of y

Questions without an answer (NaN, +inf logits in a softmax, a row with nothing but -inf) raise.
"""

from collections.abc import Callable
from functools import cache, cached_property, lru_cache
from typing import Any, NamedTuple

import mpmath
import numpy as np
from numpy.typing import ArrayLike, NDArray

mp: Any = mpmath.mp.clone()  # a context of our own: the caller's precision stays as it is
mp.dps = 60
ZERO, ONE = mp.mpf(0), mp.mpf(1)

Array = NDArray[np.float64]


def _float64(numbers: list[Any]) -> Array:
    """mpmath numbers, each rounded once; beyond the range of float64: 0 or inf."""
    rounded = np.array([float(number) for number in numbers], np.float64)
    rounded.flags.writeable = False  # results are cached
    return rounded


def _exact(values: ArrayLike) -> Array:
    """To float64 without rounding; a dtype that float64 does not contain is refused."""
    array = np.asarray(values)
    if array.dtype.itemsize > 8:
        raise TypeError(f"`values` must be exact in float64, got {array.dtype}.")
    return array.astype(np.float64)


# --- softmax ------------------------------------------------------------------------------------


class Softmax:
    """p, q = 1 - p and -log p of one row, one number per DISTINCT logit.

    With m = max z, e = exp(z - m), S = sum e:  p = e / S,  q = (sum of the other e) / S,
    -log p = log S - (z - m), or log1p(S - 1) for a class that is alone at the maximum.
    """

    def __init__(self, z: Array):
        distinct, self.inverse, counts = np.unique(z, return_inverse=True, return_counts=True)
        if not np.isfinite(distinct[-1]):  # where np.unique sorts inf and NaN to
            raise ValueError("`z` must have a finite maximum and no NaN or +inf.")
        live = [mp.mpf(x) for x in distinct.tolist()]
        shifted = [mp.fsub(x, live[-1], exact=True) for x in live]
        e = [mp.exp(x) for x in shifted]
        below_max = mp.fsum(n * x for n, x in zip(counts.tolist()[:-1], e[:-1], strict=True))
        rest = below_max + (int(counts[-1]) - 1)  # S without one of the classes at the maximum
        total = rest + 1
        log_total = mp.log1p(rest)
        # total - e loses one bit at most: e <= total / 2 for every class that is not the maximum.
        self.p = [x / total for x in e]
        self.q = [(total - x) / total for x in e[:-1]] + [rest / total]
        self.surprise = [log_total - x for x in shifted]


@lru_cache(maxsize=256)  # a row of 1e5 distinct logits takes 75 MB
def _softmax(row: bytes) -> Softmax:
    return Softmax(np.frombuffer(row, np.float64))


class _Term(NamedTuple):
    """One class of L: p, q, -log p, its weight w, its gamma g and how many classes are like it."""

    p: Any
    q: Any
    surprise: Any
    w: Any
    g: Any
    copies: int

    @property
    def modulation(self) -> Any:
        """q^g, with 0^0 = 1 (gamma = 0 is cross-entropy, also at p = 1)."""
        return self.q**self.g

    @property
    def phi(self) -> Any:
        """-p log p / q in [0, 1]: 0 at p = 0, 1 at q = 0."""
        if self.p == 0:
            return ZERO
        return ONE if self.q == 0 else self.p * self.surprise / self.q

    @property
    def a(self) -> Any:
        """A = w pull: the slope of the class' own loss in -log-odds, over q."""
        return self.w * self.pull if self.w else ZERO

    @property
    def curvature(self) -> tuple[Any, Any]:
        """D = (dA/du) / q, and its absolute terms.

        Zero at p = 0 and, because D only occurs times p_j = 0 or q, also at q = 0.
        """
        if not self.w or self.q == 0:
            return ZERO, ZERO
        bends = [self.w * x for x in self.bends]
        return mp.fsum(bends), mp.fsum(bends, absolute=True)

    @property
    def log_q(self) -> Any:
        return mp.log1p(-self.p) if 2 * self.p < 1 else mp.log(self.q)

    @property
    def by_g(self) -> Any:
        """The derivative of the value by g, but at p = 0 or q = 0, where its limit is 0."""
        return self.value * self.log_q if self.p and self.q else ZERO

    # What makes the loss focal loss; the other members of the family say the same of theirs.

    @property
    def value(self) -> Any:
        """q^g (-log p)."""
        return self.modulation * self.surprise

    @property
    def pull(self) -> Any:
        """q^g (1 + g phi)."""
        return self.modulation * (1 + self.g * self.phi)

    @property
    def bends(self) -> list[Any]:
        """(d pull / du) / q = g q^(g-1) ((phi - p) - p (1 + g phi)), term by term."""
        outer = self.g * self.q ** (self.g - 1)
        return [outer * (self.phi - self.p), -outer * self.p * (1 + self.g * self.phi)]


@cache
def poly(epsilon: float) -> type[_Term]:
    """Poly: epsilon q^(g+1) more."""

    class Poly(_Term):
        @property
        def value(self) -> Any:
            return super().value + epsilon * self.q * self.modulation

        @property
        def pull(self) -> Any:
            return super().pull + epsilon * (self.g + 1) * self.modulation * self.p

        @property
        def bends(self) -> list[Any]:
            outer = epsilon * (self.g + 1) * self.q ** (self.g - 1) * self.p
            return [*super().bends, outer * self.q, -outer * self.g * self.p]

    return Poly


def beyond(margin: Any) -> Any:
    """A negative answer of the asymmetric loss: r^g (-log(1 - r)), r = max(q - margin, 0)."""

    class Beyond(_Term):
        @property
        def r(self) -> Any:
            return max(self.q - margin, ZERO)

        @property
        def value(self) -> Any:
            return self.r**self.g * -mp.log1p(-self.r)

        @property
        def pull(self) -> Any:
            return self.p * mp.fsum(self.by_r) if self.r else ZERO

        @property
        def by_r(self) -> list[Any]:
            r, g = self.r, self.g
            return [g * r ** (g - 1) * -mp.log1p(-r), r**g / (1 - r)]

        @property
        def bends(self) -> list[Any]:
            r, g, p = self.r, self.g, self.p
            if not r:
                return []
            twice = [
                g * (g - 1) * r ** (g - 2) * -mp.log1p(-r),
                2 * g * r ** (g - 1) / (1 - r),
                r**g / (1 - r) ** 2,
            ]
            return [*(p * x for x in self.by_r), *(-(p**2) * x for x in twice)]

        @property
        def by_g(self) -> Any:
            return self.value * mp.log(self.r) if self.r else ZERO

    return Beyond


def detached_beyond(margin: Any) -> Any:
    """The same with the factor r^g a constant."""

    class Detached(beyond(margin)):
        @property
        def by_r(self) -> list[Any]:
            return [self.r**self.g / (1 - self.r)]

        @property
        def bends(self) -> list[Any]:
            p, (slope,) = self.p, self.by_r
            return [p * slope, -(p**2) * slope / (1 - self.r)] if self.r else []

        @property
        def by_g(self) -> Any:
            return ZERO

    return Detached


class DetachedFocal(_Term):
    """Focal loss whose factor is a constant."""

    @property
    def pull(self) -> Any:
        return self.modulation

    @property
    def bends(self) -> list[Any]:
        return []

    @property
    def by_g(self) -> Any:
        return ZERO


class Quadratic(_Term):
    """(1 + g) q^2: what a user may write, with g linear in the loss."""

    @property
    def value(self) -> Any:
        return (1 + self.g) * self.q**2

    @property
    def pull(self) -> Any:
        return 2 * (1 + self.g) * self.p * self.q

    @property
    def bends(self) -> list[Any]:
        outer = 2 * (1 + self.g) * self.p
        return [outer * self.q, -outer * self.p]

    @property
    def by_g(self) -> Any:
        return self.q**2


class SoftmaxFocal:
    """L = sum_k w_k (1 - p_k)^g_k (-log p_k), p = softmax(z), and its derivatives, for one row.

    Or another member of the family: `kind` has its value and the derivatives of this along the log-odds.

    Each is computed when first asked for. Classes with w_k = 0 contribute nothing to L, even at
    z_k = -inf. With A_k = w_k q_k^g_k (1 + g_k phi_k), phi = -p log p / q:

        value         L
        grad          [C]     dL/dz_k = p_k sum_{c != k} A_c - q_k A_k
        scale         [C]     p_k sum_{c != k} |A_c| + q_k |A_k|, to judge errors of `grad` by
        grad_weights  [C]     dL/dw_k = q_k^g_k (-log p_k), for w_k = 0 too
        grad_gammas   [C]     dL/dg_k = w_k q_k^g_k (-log p_k) log q_k
        grad_gamma            their sum: the derivative in a gamma that all classes share
        hessian       [C, C]  d2L/dz2;  hessian_scale [C, C]: the sum of its absolute terms
        hessian_scale_odds    the same for the form in log-odds, which cancels more (see there)
    """

    def __init__(self, z: Array, weights: Array, gamma: Array, kind: type[_Term] = _Term):
        softmax = _softmax(z.tobytes())
        w_distinct, w_inverse = np.unique(weights, return_inverse=True)
        g_distinct, g_inverse = np.unique(gamma, return_inverse=True)
        shape = (len(softmax.p), len(w_distinct), len(g_distinct))
        code = np.ravel_multi_index((softmax.inverse, w_inverse, g_inverse), shape)
        kinds, self._inverse, counts = np.unique(code, return_inverse=True, return_counts=True)
        ws = [mp.mpf(x) for x in w_distinct.tolist()]
        gs = [mp.mpf(x) for x in g_distinct.tolist()]
        self._terms = [
            kind(softmax.p[i], softmax.q[i], softmax.surprise[i], ws[j], gs[k], count)
            for i, j, k, count in zip(
                *(index.tolist() for index in np.unravel_index(kinds, shape)),
                counts.tolist(),
                strict=True,
            )
        ]
        self._classes = len(z)

    def _per_class(self, numbers: list[Any]) -> Array:
        """One number per kind of class -> one float64 per class."""
        values = _float64(numbers)[self._inverse]
        values.flags.writeable = False
        return values

    @cached_property
    def value(self) -> float:
        return float(mp.fsum(t.copies * t.w * t.value for t in self._terms if t.w))

    @cached_property
    def _slopes(self) -> list[Any]:
        return [t.a for t in self._terms]

    def _gradient(self, slopes: list[Any], sign: int) -> Array:
        """p_k sum_{c != k} A_c + sign q_k A_k for the A in `slopes`."""
        terms = self._terms
        totals = {i: terms[i].copies * a for i, a in enumerate(slopes) if a}
        total = mp.fsum(totals.values())
        largest = max(totals, key=lambda i: abs(slopes[i]), default=None)
        grad = [t.p * total for t in terms]
        for i in totals:
            rest = total - slopes[i]  # loses a bit at most, but for the largest A:
            if i == largest:
                others = mp.fsum(a for k, a in totals.items() if k != i)
                rest = others + (terms[i].copies - 1) * slopes[i]
            grad[i] = terms[i].p * rest + sign * terms[i].q * slopes[i]
        return self._per_class(grad)

    @cached_property
    def grad(self) -> Array:
        return self._gradient(self._slopes, -1)

    @cached_property
    def scale(self) -> Array:
        return self._gradient([abs(a) for a in self._slopes], 1)

    @cached_property
    def grad_weights(self) -> Array:
        return self._per_class([t.value for t in self._terms])

    @cached_property
    def _gamma_slopes(self) -> list[Any]:
        # p = 0: log p * log q -> 0;  q = 0: log p ~ -q, so q log q -> 0
        return [t.w * t.by_g if t.w else ZERO for t in self._terms]

    @cached_property
    def grad_gammas(self) -> Array:
        return self._per_class(self._gamma_slopes)

    @cached_property
    def grad_gamma(self) -> float:
        pairs = zip(self._terms, self._gamma_slopes, strict=True)
        return float(mp.fsum(t.copies * slope for t, slope in pairs if slope))

    @cached_property
    def _hessian(self) -> tuple[Array, Array]:
        terms, slopes = self._terms, self._slopes
        curvatures = [t.curvature for t in terms]
        hessian = self._second([d for d, _ in curvatures], slopes, -1)
        scale = self._second([d for _, d in curvatures], [abs(a) for a in slopes], 1)
        return hessian, scale

    def _second(self, d: list[Any], slopes: list[Any], sign: int) -> Array:
        """H_ij = -sum_k D_k s_ik s_jk + sum_k A_k p_j s_ij,  s_ik = q_k if i = k else -p_i.

        With sign = 1 every term counts as positive: the scale.
        """
        terms = self._terms
        kinds = self._inverse.tolist()
        top = max(kinds, key=lambda k: terms[k].p)  # the one class whose D can be huge (q -> 0)
        d_top, alone = d[top], terms[top].copies == 1
        if alone:
            d = [*d[:top], ZERO, *d[top + 1 :]]
        small = mp.fsum(t.copies * x for t, x in zip(terms, d, strict=True) if x)
        total = mp.fsum(t.copies * a for t, a in zip(terms, slopes, strict=True) if a)

        def rest(*left_out: int) -> Any:
            """sum of D over the classes that are not left out, the huge one added last."""
            huge = d_top if alone and top not in left_out else ZERO
            return small - mp.fsum(d[k] for k in left_out) + huge

        def own(k: int) -> Any:
            return (d_top if alone and k == top else d[k]) * terms[k].q

        @cache
        def diagonal(i: int) -> Any:
            p, q = terms[i].p, terms[i].q
            return sign * (own(i) * q + p * p * rest(i)) + total * p * q

        @cache
        def beside(i: int, j: int) -> Any:
            p_i, p_j = terms[i].p, terms[j].p
            crossed = own(i) * p_j + own(j) * p_i
            return crossed + sign * p_i * p_j * (rest(i, j) + total)

        entries = [
            diagonal(i) if row == column else beside(i, j)
            for row, i in enumerate(kinds)
            for column, j in enumerate(kinds)
        ]
        matrix = _float64(entries).reshape(self._classes, self._classes)
        matrix.flags.writeable = False
        return matrix

    @property
    def hessian(self) -> Array:
        return self._hessian[0]

    @property
    def hessian_scale(self) -> Array:
        return self._hessian[1]

    @cached_property
    def hessian_scale_odds(self) -> Array:
        """The absolute terms of sum_k slope'_k v v^T + slope_k d2u_k/dz2, for u_k the log-odds.

        slope = -q A, slope' = q (p A - q D), v = du/dz = 1 for k itself and -p_i / q_k =: -r_i for
        the others, d2u/dz2 = r r^T - diag(r). What one gains by differentiating the gradient of an
        integer label as it stands. The entries of the target have the same scale as `hessian`; the
        others a larger one: q r_i r_j where the Hessian is q^2 r_i r_j.
        """
        scale = np.zeros((self._classes, self._classes))
        for own, kind in enumerate(self._inverse.tolist()):
            t = self._terms[kind]
            if not t.w or t.q == 0:  # q = 0: p_i = 0 for every other class
                continue
            r = self._per_class([other.p / t.q for other in self._terms]).copy()
            r[own] = 0.0
            slope = float(t.q * abs(t.a))
            bend = float(t.q * t.q * t.curvature[1] + t.q * t.p * abs(t.a))
            scale += slope * (np.diag(r) + np.outer(r, r))
            r[own] = 1.0
            scale += bend * np.outer(r, r)
        scale.flags.writeable = False
        return scale


def _softmax_focal(z: bytes, weights: bytes, gamma: bytes, kind: type[_Term]) -> SoftmaxFocal:
    return SoftmaxFocal(*(np.frombuffer(x, np.float64) for x in (z, weights, gamma)), kind)


FEW = 100  # classes: all rows of as many, which two forms ask for, take 100 MB
_of_few, _of_many = (lru_cache(maxsize=size)(_softmax_focal) for size in (16384, 64))


def softmax_focal(
    z: ArrayLike, weights: ArrayLike, gamma: ArrayLike, kind: type[_Term] = _Term
) -> SoftmaxFocal:
    """One row of the categorical focal loss; `weights` and `gamma` are scalars or per class.

    A one-hot row of weights (times alpha) is the loss of an integer label. Results are cached.
    """
    row = _exact(z)
    if row.ndim != 1 or not row.size:
        raise ValueError(f"`z` must be one row of classes, got shape {row.shape}.")
    rows = (row, *(np.broadcast_to(_exact(x), row.shape) for x in (weights, gamma)))
    cached = _of_few if row.size <= FEW else _of_many
    return cached(*(np.ascontiguousarray(x).tobytes() for x in rows), kind)


class Batch:
    """The fields of `SoftmaxFocal` for several rows, stacked along a first axis of N."""

    def __init__(self, rows: list[SoftmaxFocal]):
        self.rows = rows

    def _stack(self, field: Callable[[SoftmaxFocal], float | Array]) -> Array:
        return np.array([field(row) for row in self.rows], np.float64)

    @cached_property
    def value(self) -> Array:
        return self._stack(lambda row: row.value)

    @cached_property
    def grad(self) -> Array:
        return self._stack(lambda row: row.grad)

    @cached_property
    def scale(self) -> Array:
        return self._stack(lambda row: row.scale)

    @cached_property
    def grad_weights(self) -> Array:
        return self._stack(lambda row: row.grad_weights)

    @cached_property
    def grad_gammas(self) -> Array:
        return self._stack(lambda row: row.grad_gammas)

    @cached_property
    def grad_gamma(self) -> Array:
        return self._stack(lambda row: row.grad_gamma)

    @cached_property
    def hessian(self) -> Array:
        return self._stack(lambda row: row.hessian)

    @cached_property
    def hessian_scale(self) -> Array:
        return self._stack(lambda row: row.hessian_scale)

    @cached_property
    def hessian_scale_odds(self) -> Array:
        return self._stack(lambda row: row.hessian_scale_odds)


def batch(logits: ArrayLike, weights: ArrayLike, gamma: ArrayLike, kind: type[_Term] = _Term) -> Batch:
    """Rows of `softmax_focal`; `weights` and `gamma` broadcast against the logits [N, C].

    A gamma or weight per example is [N, 1].
    """
    z = _exact(logits)
    per_row = [np.broadcast_to(_exact(x), z.shape) for x in (weights, gamma)]
    return Batch([softmax_focal(*row, kind) for row in zip(z, *per_row, strict=True)])


def one_hot(targets: ArrayLike, classes: int, weight: ArrayLike = 1.0) -> Array:
    """Weights [N, C] with `weight` (scalar or [N]) at the targets: integer labels."""
    index = np.asarray(targets)
    weights = np.zeros((len(index), classes))
    weights[np.arange(len(index)), index] = _exact(weight)
    return weights


# --- sigmoid ------------------------------------------------------------------------------------


class SigmoidFocal(NamedTuple):
    """f = w (m^g b + epsilon m^(g+1)) elementwise, b the binary cross-entropy, m how wrong the answer is.

    p = sigmoid(z), q = 1 - p,  b = y softplus(-z) + (1-y) softplus(z),  and by the reading of y

        mixture        m = y q + (1-y) p,  m' = (1-2y) p q,     dm/dy = q - p
        quality        m = |y - p|,        m' = +-p q,          dm/dy = -+1
        cross_entropy  m = 1 - exp(-b),    m' = (1-m) b',       dm/dy = -(1-m) z

    with b' = (1-y) p - y q and b'' = p q. The fields, and for each the sum of its absolute terms, with a
    part for what the rounding of m's own parts does: y - p cancels, and 1 - m = exp(-b) moves with b.
    """

    value: Array
    grad: Array  # df/dz
    grad_y: Array
    grad_gamma: Array
    grad2: Array  # d2f/dz2
    scale_value: Array
    scale: Array
    scale_y: Array
    scale_gamma: Array
    scale2: Array


def answers(
    z: ArrayLike,
    y: ArrayLike,
    gamma: float,
    yes: type[_Term],
    no: Callable[[Any], type[_Term]],
    margin: float,
) -> SigmoidFocal:
    """Labels read as linear: y times what the answer `yes` costs and 1 - y times `no`, of any two kinds.

    Of a kind with a margin the scales have what a change of that by 1 u does, where a tolerance is 1 u.
    """
    g, step = mp.mpf(gamma), mp.mpf(10) ** -25

    def fields(x: Any, y: Any, no: type[_Term]) -> list[list[Any]]:
        r = mp.exp(-abs(x))
        p, q = (1 / (1 + r), r / (1 + r)) if x >= 0 else (r / (1 + r), 1 / (1 + r))
        log_p, log_q = (-mp.log1p(r) + min(u, 0) for u in (x, -x))
        one, other = yes(p, q, -log_p, ONE, g, 1), no(q, p, -log_q, ONE, g, 1)
        n = mp.fsub(1, y, exact=True)
        bends = [y * q * p * one.pull, *(-y * q * q * b for b in one.bends)] if q else []
        bends += [n * p * q * other.pull, *(-n * p * p * b for b in other.bends)]
        return [
            [y * one.value, n * other.value],
            [-y * q * one.pull, n * p * other.pull],
            [one.value, -other.value],
            [y * one.by_g, n * other.by_g],
            bends,
        ]

    margins = [mp.mpf(margin), *([margin * (1 + step)] if margin else [])]
    points = []
    for x, label in zip(_exact(z).tolist(), _exact(y).tolist(), strict=True):
        at = [fields(mp.mpf(x), mp.mpf(label), no(m)) for m in margins]
        slack = [abs(mp.fsum(b) - mp.fsum(a)) / step for a, b in zip(at[0], at[-1], strict=True)]
        scales = [mp.fsum(a, absolute=True) + e for a, e in zip(at[0], slack, strict=True)]
        points.append([*(mp.fsum(a) for a in at[0]), *scales])
    return SigmoidFocal(*(_float64(list(field)) for field in zip(*points, strict=True)))


@lru_cache(maxsize=65536)
def _sigmoid_point(z: float, y: float, gamma: float, reading: str, epsilon: float) -> tuple[Any, ...]:
    """The fields of `SigmoidFocal` at one point, for w = 1."""
    x, g = mp.mpf(z), mp.mpf(gamma)
    yes = mp.mpf(y)
    no = mp.fsub(1, yes, exact=True)
    if mp.isinf(x):
        return _sigmoid_limit(yes if x > 0 else no, g, 1 if x > 0 else -1, reading, epsilon)
    r = mp.exp(-abs(x))
    large, small = 1 / (1 + r), r / (1 + r)
    p, q = (large, small) if x >= 0 else (small, large)
    soft = mp.log1p(r)
    b = yes * (soft + max(-x, 0)) + no * (soft + max(x, 0))
    slopes, bend, spill = [no * p, -yes * q], p * q, ZERO  # b', b'', and what rounding adds to m
    if reading == "mixture":
        m, right, turn = yes * q + no * p, yes * p + no * q, (no - yes) * bend
        dm, ddm, dm_y = [turn], turn * (q - p), q - p
    elif reading == "quality":
        side = mp.sign(mp.fsum(slopes))
        m, dm, ddm, dm_y = abs(mp.fsum(slopes)), [side * bend], side * bend * (q - p), -side
        right, spill = 1 - m, mp.fsum(slopes, absolute=True) - m
    else:
        right = mp.exp(-b)
        m, dm, dm_y = -mp.expm1(-b), [right * one for one in slopes], -right * x
        ddm, spill = (
            right * (bend - mp.fsum(slopes) ** 2),
            right * b / 32,
        )  # 1 u of b, where a tolerance is 32

    beside_b = [_falling(g, n) * m ** (g - n) for n in range(4)]  # the n-th derivative of m^g
    over_m = [  # the n-th derivative by m, its part with b and that without
        [own * b, epsilon * _falling(g + 1, n) * m ** (g + 1 - n)] for n, own in enumerate(beside_b)
    ]
    steep = [mp.fsum(parts) for parts in over_m]
    log_m = mp.log1p(-right) if 2 * right < 1 else mp.log(m)
    fields = [  # terms of each, and its derivative by m
        (over_m[0], steep[1]),
        (
            [*(t * d for t in over_m[1] for d in dm), *(beside_b[0] * s for s in slopes)],
            steep[2] * mp.fsum(dm) + beside_b[1] * mp.fsum(slopes),
        ),
        (
            [*(t * dm_y for t in over_m[1]), -beside_b[0] * x],
            steep[2] * dm_y - beside_b[1] * x,
        ),
        ([t * log_m for t in over_m[0]], steep[1] * log_m + steep[0] / m),
        (
            [
                *(t * c * d for t in over_m[2] for c in dm for d in dm),
                *(2 * beside_b[1] * d * s for d in dm for s in slopes),
                *(t * ddm for t in over_m[1]),
                beside_b[0] * bend,
            ],
            steep[3] * mp.fsum(dm) ** 2 + 2 * beside_b[2] * mp.fsum(dm) * mp.fsum(slopes) + steep[2] * ddm,
        ),
    ]
    scales = [mp.fsum(terms, absolute=True) + spill * abs(by_m) for terms, by_m in fields]
    return (*(mp.fsum(terms) for terms, _ in fields), *scales)


def _falling(x: Any, n: int) -> Any:
    """x (x - 1) ... (x - n + 1)."""
    return mp.fprod(x - k for k in range(n))


def _sigmoid_limit(right: Any, g: Any, sign: int, reading: str, epsilon: float) -> tuple[Any, ...]:
    """z -> sign * inf, `right` being the label of the side that it is on.

    right = 1: m = q, b ~ q, everything dies but df/dy of gamma = 0, which is -z.
    right < 1: b -> inf, b' -> 1 - right (and p q b -> 0); m -> 1 - right, or 1 where it is made of b.
    """
    wrong, inf = 1 - right, mp.inf
    if wrong == 0:
        grad_y = -sign * inf if g == 0 else ZERO
        return (ZERO, ZERO, grad_y, ZERO, ZERO, ZERO, ZERO, abs(grad_y), ZERO, ZERO)
    m = ONE if reading == "cross_entropy" else wrong
    grad = m**g * wrong
    grad_gamma = -inf if m < 1 else ZERO  # m -> 1: log m ~ -q while b ~ |z|
    return (inf, sign * grad, -sign * inf, grad_gamma, ZERO, inf, grad, inf, abs(grad_gamma), ZERO)


def sigmoid_focal(
    z: ArrayLike,
    y: ArrayLike,
    gamma: ArrayLike,
    weight: ArrayLike = 1.0,
    reading: str = "mixture",
    epsilon: float = 0.0,
) -> SigmoidFocal:
    """The binary focal loss, its derivatives and their scales, elementwise with broadcasting.

    z may be +-inf (the limits); y is in [0, 1].
    """
    z_, y_, gamma_, weight_ = np.broadcast_arrays(*(_exact(x) for x in (z, y, gamma, weight)))
    if np.isnan(z_).any() or not ((y_ >= 0) & (y_ <= 1)).all():
        raise ValueError("`z` must not be NaN and `y` must be in [0, 1].")
    flat = zip(*(x.ravel().tolist() for x in (z_, y_, gamma_, weight_)), strict=True)
    points = [
        [mp.mpf(w) * field if w else ZERO for field in _sigmoid_point(x, label, g, reading, epsilon)]
        for x, label, g, w in flat
    ]
    fields = zip(*points, strict=True) if points else [()] * len(SigmoidFocal._fields)
    return SigmoidFocal(*(_float64(list(field)).reshape(z_.shape) for field in fields))
