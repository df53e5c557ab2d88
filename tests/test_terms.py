"""Every member of the family, in every softmax loss, in every derivative: one matrix.

A term of a user's is among them, written below in one class with a value and nothing else.
"""

from functools import partial
from typing import Any, NamedTuple

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tolerances
from conftest import FORMS
from pairs import every_pair

from focaljax import (
    linear_softmax_focal_loss,
    sigmoid_focal_loss,
    softmax_focal_loss,
    softmax_focal_loss_with_integer_labels,
)
from focaljax.calibration import log_posterior
from focaljax.terms import Asymmetric, Detached, Focal, Poly, Term

GAMMAS = (0.0, 0.5, 2.0, 5.0)


class Quadratic(Term):
    """(1 + gamma) q^2."""

    gamma: Any = 1.0

    def value(self, odds):
        return (1 + self.gamma) * odds.q**2


def detached(gamma):
    return Detached(Focal(gamma))


class Member(NamedTuple):
    """``make(gamma, *options)`` is the term; what the oracle calls it, and how much larger its parts are."""

    make: Any
    kind: Any
    options: tuple[float, ...] = ()
    parts: float = 1.0  # sizes of the terms of its value and its pull over their sum, at most


MEMBERS = {  # those of one name run one program
    "focal": [Member(Focal, oracle._Term)],
    "poly": [Member(Poly, oracle.poly(1.0), (1.0,)), Member(Poly, oracle.poly(-0.5), (-0.5,), parts=3.0)],
    "detached": [Member(detached, oracle.DetachedFocal)],
    "a user's": [Member(Quadratic, oracle.Quadratic)],
}


@pytest.fixture(params=MEMBERS)
def name(request) -> str:
    return request.param


@partial(jax.jit, static_argnums=0)
def of_integers(make, logits, labels, alpha, gamma, options):
    """Losses, and the gradients by logits, alpha and gamma, each of these per example."""

    def total(logits, alpha, gamma):
        term = make(gamma, *options)
        losses = softmax_focal_loss_with_integer_labels(logits, labels, alpha=alpha, term=term)
        return jnp.sum(losses), losses

    return jax.grad(total, (0, 1, 2), has_aux=True)(logits, alpha, gamma)


@partial(jax.jit, static_argnums=0)
def of_soft(make, logits, labels, alpha, gamma, options):
    """The same of soft labels, with the gradient by these in the place of that by alpha."""

    def total(logits, labels, gamma):
        losses = softmax_focal_loss(logits, labels, alpha=alpha, term=make(gamma, *options))
        return jnp.sum(losses), losses

    return jax.grad(total, (0, 1, 2), has_aux=True)(logits, labels, gamma)


@partial(jax.jit, static_argnums=(0, 1))
def hessian_of(make, loss, logits, labels, gamma, options):
    def one(logits, labels):
        return jnp.sum(loss(logits, labels, term=make(gamma, *options)))

    return jax.vmap(jax.hessian(one))(logits, labels)


def columns(x, rows):
    return np.full((rows, 1), x, np.float32)


@pytest.mark.parametrize("gamma", GAMMAS)
@every_pair(form=FORMS, name=MEMBERS, classes=[1, 3, 100])
def test_integer_labels_against_the_oracle(form, name, classes, gamma):
    logits, targets = cases.rows(classes)
    n, alpha = len(targets), 0.75
    tiny = tolerances.flush(classes, factor=alpha * (2 + gamma))
    logs = tolerances.flush(classes, factor=alpha * tolerances.FLUSHED_LOG * (2 + gamma))
    for member in MEMBERS[name]:
        truth = oracle.batch(logits, oracle.one_hot(targets, classes, alpha), gamma, member.kind)
        (by_logits, by_alpha, by_gamma), losses = of_integers(
            member.make, logits, targets, columns(alpha, n), columns(gamma, n), member.options
        )
        table = [
            ("value", losses, truth.value, tiny),
            ("gradient", by_logits, truth.grad, tiny),
            ("gradient_weights", by_alpha[:, 0], truth.value / alpha, tiny / alpha),
            ("gradient_gamma", by_gamma[:, 0], truth.grad_gamma, logs),
        ]
        for quantity, got, want, flushed in table:
            rtol = member.parts * tolerances.rtol(quantity, gamma)
            names = cases.names(classes)
            tolerances.assert_close(got, want, rtol=rtol, tiny=flushed, names=names, label=quantity)


@pytest.mark.parametrize("gamma", GAMMAS)
@every_pair(form=FORMS, name=MEMBERS, classes=[2, 10])
def test_soft_labels_against_the_oracle(form, name, classes, gamma):
    rows = cases.soft_rows(classes)
    rows = cases.SoftRows(*(x[:: 1 if classes == 2 else 7] for x in rows))
    close = partial(tolerances.assert_close, names=rows.names)
    tiny = tolerances.flush(classes, factor=4 * (2 + gamma))
    live = np.isfinite(rows.logits) | (rows.weights != 0)  # a label at -inf costs infinity
    for member in MEMBERS[name]:
        truth = oracle.batch(rows.logits, rows.weights, gamma, member.kind)
        (by_logits, by_labels, by_gamma), losses = of_soft(
            member.make, rows.logits, rows.labels, rows.alpha, columns(gamma, len(live)), member.options
        )
        rtol = member.parts * tolerances.rtol("value", gamma)
        close(losses, truth.value, rtol=rtol, tiny=tiny, label="value")
        rtol = member.parts * tolerances.rtol("gradient_scale", gamma)
        close(by_logits, truth.grad, scale=truth.scale, rtol=rtol, tiny=tiny, label="logits")
        rtol = member.parts * tolerances.rtol("gradient_weights", gamma)
        want = np.where(live, rows.alpha * truth.grad_weights, 0)
        close(np.where(live, by_labels, 0), want, rtol=rtol, tiny=4 * tiny, label="labels")
        rtol = member.parts * tolerances.rtol("gradient_gamma", gamma)
        logs = tiny * tolerances.FLUSHED_LOG
        close(by_gamma[:, 0], truth.grad_gamma, rtol=rtol, tiny=logs, label="gamma")


@pytest.mark.parametrize("gamma", GAMMAS)
@every_pair(form=FORMS, name=MEMBERS, labels=["integer", "soft"])
def test_hessians_against_the_oracle(form, name, labels, gamma):
    logits, targets = (x[::3] for x in cases.rows(3))
    hot = oracle.one_hot(targets, 3)
    loss, given = {
        "integer": (softmax_focal_loss_with_integer_labels, targets),
        "soft": (softmax_focal_loss, hot.astype(np.float32)),
    }[labels]
    tiny = tolerances.flush(3, factor=4 * tolerances.FLUSHED_LOG * (2 + gamma) ** 2)
    for member in MEMBERS[name]:
        truth = oracle.batch(logits, hot, gamma, member.kind)
        scale = truth.hessian_scale if labels == "soft" else truth.hessian_scale_odds
        found = hessian_of(member.make, loss, logits, given, jnp.float32(gamma), member.options)
        rtol = member.parts * tolerances.rtol("hessian", gamma)
        tolerances.assert_close(found, truth.hessian, scale=scale, rtol=rtol, tiny=tiny)


@partial(jax.jit, static_argnums=0)
def of_logits(make, inputs, kernel, labels, gamma, options, smoothing):
    """The sum of the losses of ``inputs @ kernel`` and its gradients: one program, with a gamma per logit."""

    def total(inputs, kernel, gamma):
        logits = jnp.dot(inputs, kernel, precision="highest")
        term = make(gamma, *options)
        losses = softmax_focal_loss_with_integer_labels(logits, labels, term=term, label_smoothing=smoothing)
        return jnp.sum(losses)

    return jax.value_and_grad(total, (0, 1, 2))(inputs, kernel, gamma)


@partial(jax.jit, static_argnames=("make", "strategy", "label_smoothing"))
def of_layer(make, inputs, kernel, labels, gamma, options, **how):
    """The same of the linear loss, in chunks, with any gamma."""

    def total(inputs, kernel, gamma):
        term = make(gamma, *options)
        return linear_softmax_focal_loss(inputs, kernel, labels, term=term, reduction="sum", chunk=2, **how)

    return jax.value_and_grad(total, (0, 1, 2))(inputs, kernel, gamma)


@every_pair(name=MEMBERS, strategy=["rows", "classes"], smoothing=[0.0, 0.1], per=["class", "example"])
def test_the_linear_loss_is_that_of_its_logits(name, strategy, smoothing, per):
    """Options per class and per example, in every gradient."""
    rng = np.random.default_rng(0)
    inputs, kernel = (rng.normal(size=shape).astype("float32") for shape in [(6, 3), (3, 7)])
    labels = rng.integers(0, 7, 6)
    shape, spread = {"class": ((7,), (0,)), "example": ((6, 1), (1,))}[per]
    gamma = rng.uniform(0.5, 2.0, shape).astype("float32")
    for make, _, options, _ in MEMBERS[name]:
        how = {"strategy": strategy, "label_smoothing": smoothing}
        found = of_layer(make, inputs, kernel, labels, gamma, options, **how)
        each = np.broadcast_to(gamma, (6, 7))
        value, by_logits = of_logits(make, inputs, kernel, labels, each, options, smoothing)
        want = value, (*by_logits[:2], np.sum(by_logits[2], spread).reshape(shape))
        chex.assert_trees_all_close(found, want, rtol=1e-5, atol=1e-5)  # sums of both signs, near 1


class Sided(NamedTuple):
    """A member whose answer "no" is another kind of loss, with its margin."""

    yes: Member
    no: Any
    margin: float = 0.0


def asymmetric(gamma, margin):
    return Asymmetric(gamma, gamma, margin)


def detached_asymmetric(gamma, margin):
    return Detached(Asymmetric(gamma, gamma, margin))


MARGIN = float(np.float32(0.05))
SIDED = {name: [Sided(m, lambda _, m=m: m.kind) for m in members] for name, members in MEMBERS.items()}
SIDED |= {
    "asymmetric": [
        Sided(Member(asymmetric, oracle._Term, (MARGIN,)), oracle.beyond, MARGIN),
        Sided(Member(asymmetric, oracle._Term, (0.0,)), lambda _: oracle._Term),
    ],
    "detached asymmetric": [
        Sided(Member(detached_asymmetric, oracle.DetachedFocal, (MARGIN,)), oracle.detached_beyond, MARGIN)
    ],
}


@partial(jax.jit, static_argnums=0)
def of_answers(make, z, y, gamma, options):
    """Losses, gradients by all, and the second derivatives by z."""

    def one(z, y, gamma):
        return sigmoid_focal_loss(z, y, term=make(gamma, *options), soft_labels="linear")

    def at(z, y):
        return jax.value_and_grad(one, (0, 1, 2))(z, y, gamma), jax.grad(jax.grad(one))(z, y, gamma)

    return jax.vmap(at)(z, y)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("name", SIDED)
def test_two_answers_against_the_oracle(name, gamma):
    """Sigmoid losses of every term, near the margin too; labels between 0 and 1 weigh the answers."""
    near = np.float32(np.log(MARGIN / (1 - MARGIN)) + np.array([-0.1, -1e-3, 1e-3, 0.1]))
    z, y = (
        np.concatenate([one, *extra])
        for one, extra in zip(
            cases.sigmoid_grid(),
            [[near, near], [np.zeros(4, np.float32), np.full(4, 0.3, np.float32)]],
            strict=True,
        )
    )
    names = [f"z = {a:g}, y = {b:g}" for a, b in zip(z, y, strict=True)]
    for member, no, margin in SIDED[name]:
        truth = oracle.answers(z, y, gamma, member.kind, no, margin)
        (value, (by_z, by_y, by_gamma)), second = of_answers(
            member.make, z, y, jnp.float32(gamma), member.options
        )
        tiny = tolerances.flush(factor=2 * (2 + gamma) / (margin or 1))  # p flushes before p / margin
        logs = tiny * tolerances.FLUSHED_LOG
        table = [
            ("value", value, truth.value, truth.scale_value, tiny),
            ("gradient_scale", by_z, truth.grad, truth.scale, tiny),
            ("gradient_weights", by_y, truth.grad_y, truth.scale_y, tiny),
            ("gradient_gamma", by_gamma, truth.grad_gamma, truth.scale_gamma, logs),
            ("hessian", second, truth.grad2, truth.scale2, logs),
        ]
        for quantity, got, want, scale, flushed in table:
            close = partial(tolerances.assert_close, scale=scale, tiny=flushed, names=names, label=quantity)
            close(got, want, rtol=member.parts * tolerances.rtol(quantity, gamma))


class FromValue(Term):
    """A term without its own pull."""

    term: Any

    def value(self, odds):
        return self.term.value(odds)


def test_the_default_of_a_pull_is_the_closed_form(name):
    """From the value alone: the same gradient as from the pull that a term writes."""
    logits, targets = cases.rows(10)

    @jax.jit
    def gradients(options):
        def total(logits, term):
            return jnp.sum(softmax_focal_loss_with_integer_labels(logits, targets, term=term))

        term = MEMBERS[name][0].make(1.5, *options)
        return [jax.grad(total)(logits, t) for t in (FromValue(term), term)]

    for member in MEMBERS[name]:
        rtol = member.parts * tolerances.rtol("gradient")
        tolerances.assert_close(*gradients(member.options), rtol=rtol, tiny=tolerances.flush(10, factor=4))


def test_terms_of_like_fields_are_different_trees():
    """Or a program of one would be run for the other: JAX looks programs up by these."""
    one, other = jax.tree.structure(Focal(1.0)), jax.tree.structure(Quadratic(1.0))
    assert one != other
    assert jax.tree.map(lambda x: 2 * x, Poly(1.0, 0.5)) == Poly(2.0, 1.0)


def test_options_are_data(name):
    """Vmapped, scheduled in one program, and learned."""
    logits, labels = (x[:8] for x in cases.rows(3))

    def mean(gamma, options):
        term = MEMBERS[name][0].make(gamma, *options)
        return jnp.mean(softmax_focal_loss_with_integer_labels(logits, labels, term=term))

    chex.clear_trace_counter()
    once = jax.jit(chex.assert_max_traces(mean, n=1))
    learned = jax.jit(jax.vmap(jax.value_and_grad(mean), (0, None)))
    gammas = np.array([0.5, 1.0, 3.0], "float32")
    for member in MEMBERS[name]:
        each = [once(gamma, member.options) for gamma in gammas]
        values, slopes = learned(gammas, member.options)
        np.testing.assert_allclose(values, each, rtol=tolerances.rtol("same"))
        assert np.isfinite(slopes).all()


def test_the_posterior_undoes_a_term(name):
    """Where p minimises the expected loss, its gradient weighed by the posteriors is 0."""
    logits = np.random.default_rng(1).normal(size=(20, 4)).astype("float32")
    alpha = np.float32([0.5, 1.0, 2.0, 1.5])

    @jax.jit
    def posterior_and_slope(options):
        term = MEMBERS[name][0].make(1.5, *options)
        eta = jnp.exp(log_posterior(logits, term=term, alpha=alpha))
        return eta, jax.grad(lambda z: jnp.sum(softmax_focal_loss(z, eta, term=term, alpha=alpha)))(logits)

    for member in MEMBERS[name]:
        eta, slope = posterior_and_slope(member.options)
        np.testing.assert_allclose(np.sum(eta, 1), 1, rtol=1e-6)
        assert np.max(np.abs(slope) / np.dot(eta, alpha)[:, None]) < 2e-6 * member.parts


def test_gamma_zero_is_the_cross_entropy_of_the_term():
    """Poly at gamma 0 and epsilon 0, and a detached one, are cross-entropy."""
    logits, targets = cases.rows(10)
    loss = partial(softmax_focal_loss_with_integer_labels, logits, targets)
    want = loss(gamma=0.0)
    for term in (Focal(0.0), Poly(0.0, 0.0), Detached(Focal(0.0))):
        np.testing.assert_array_equal(loss(term=term), want)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"term": 2.0}, TypeError, "`term` must be a focaljax.terms.Term or None, got float."),
        ({"term": Focal}, TypeError, "`term` must be a focaljax.terms.Term or None, got type."),
        (
            {"term": Focal(1.0), "gamma": 1.0},
            ValueError,
            "`gamma` is short for `term=Focal(gamma)`: give one of the two, got gamma=1.0.",
        ),
        ({"term": Focal(-1.0)}, ValueError, "`term.gamma` must be at least 0 and finite, got -1.0."),
        ({"term": Poly(epsilon=np.nan)}, ValueError, "`term.epsilon` must be finite, got nan."),
        ({"term": Poly(epsilon="a")}, TypeError, "`term.epsilon` must be"),
        (
            {"term": Detached(Focal([1.0, 2.0]))},
            ValueError,
            "`term.term.gamma` must have one entry per class",
        ),
        (
            {"term": Asymmetric()},
            ValueError,
            "`term` Asymmetric is for sigmoid losses: a softmax has no answer",
        ),
        ({"term": Detached(Asymmetric())}, ValueError, "`term` Detached is for sigmoid losses"),
        ({"term": Term()}, TypeError, "`term` must be a focaljax.terms.Term or None, got Term itself."),
    ],
)
def test_a_wrong_term_is_named(options, error, message):
    logits, labels = np.zeros((4, 3), "float32"), np.zeros(4, "int32")
    calls = (
        partial(softmax_focal_loss_with_integer_labels, logits, labels),
        partial(softmax_focal_loss, logits, logits),
        partial(linear_softmax_focal_loss, logits, np.zeros((3, 3), "float32"), labels),
        partial(log_posterior, logits),
    )
    for call in calls:
        with pytest.raises(error) as caught:
            call(**options)
        assert str(caught.value).startswith(message)
