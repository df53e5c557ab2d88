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


class Member(NamedTuple):
    """How a term is made of its gamma, what the oracle calls it, and how much larger its parts are."""

    make: Any
    kind: Any
    parts: float = 1.0  # sizes of the terms of its value and its pull over their sum, at most


MEMBERS = {
    "focal": Member(Focal, oracle._Term),
    "poly": Member(partial(Poly, epsilon=1.0), oracle.poly(1.0)),
    "poly below": Member(partial(Poly, epsilon=-0.5), oracle.poly(-0.5), parts=3.0),
    "detached": Member(lambda gamma: Detached(Focal(gamma)), oracle.DetachedFocal),
    "a user's": Member(Quadratic, oracle.Quadratic),
}


@pytest.fixture(params=MEMBERS)
def name(request) -> str:
    return request.param


@partial(jax.jit, static_argnums=0)
def of_integers(name, logits, labels, alpha, gamma):
    """Losses, and the gradients by logits, alpha and gamma, each of these per example."""

    def total(logits, alpha, gamma):
        losses = softmax_focal_loss_with_integer_labels(
            logits, labels, alpha=alpha, term=MEMBERS[name].make(gamma)
        )
        return jnp.sum(losses), losses

    return jax.grad(total, (0, 1, 2), has_aux=True)(logits, alpha, gamma)


@partial(jax.jit, static_argnums=0)
def of_soft(name, logits, labels, alpha, gamma):
    """The same of soft labels, with the gradient by these in the place of that by alpha."""

    def total(logits, labels, gamma):
        losses = softmax_focal_loss(logits, labels, alpha=alpha, term=MEMBERS[name].make(gamma))
        return jnp.sum(losses), losses

    return jax.grad(total, (0, 1, 2), has_aux=True)(logits, labels, gamma)


@partial(jax.jit, static_argnums=(0, 1))
def hessian_of(name, loss, logits, labels, gamma):
    def one(logits, labels):
        return jnp.sum(loss(logits, labels, term=MEMBERS[name].make(gamma)))

    return jax.vmap(jax.hessian(one))(logits, labels)


def columns(x, rows):
    return jnp.full((rows, 1), x, jnp.float32)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("classes", [1, 3, 100])
def test_integer_labels_against_the_oracle(form, name, classes, gamma):
    member, (logits, targets) = MEMBERS[name], cases.rows(classes)
    n, alpha = len(targets), 0.75
    truth = oracle.batch(logits, oracle.one_hot(targets, classes, alpha), gamma, member.kind)
    (by_logits, by_alpha, by_gamma), losses = of_integers(
        name, logits, targets, columns(alpha, n), columns(gamma, n)
    )
    tiny = tolerances.flush(classes, factor=alpha * (2 + gamma))
    logs = tolerances.flush(classes, factor=alpha * tolerances.FLUSHED_LOG * (2 + gamma))
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
@pytest.mark.parametrize(("classes", "every"), [(2, 1), (10, 7)])
def test_soft_labels_against_the_oracle(form, name, classes, every, gamma):
    member, rows = MEMBERS[name], cases.soft_rows(classes)
    rows = cases.SoftRows(*(x[::every] for x in rows))
    truth = oracle.batch(rows.logits, rows.weights, gamma, member.kind)
    n = len(rows.logits)
    (by_logits, by_labels, by_gamma), losses = of_soft(
        name, rows.logits, rows.labels, rows.alpha, columns(gamma, n)
    )
    close = partial(tolerances.assert_close, names=rows.names)
    tiny = tolerances.flush(classes, factor=4 * (2 + gamma))
    rtol = member.parts * tolerances.rtol("value", gamma)
    close(losses, truth.value, rtol=rtol, tiny=tiny, label="value")
    rtol = member.parts * tolerances.rtol("gradient_scale", gamma)
    close(by_logits, truth.grad, scale=truth.scale, rtol=rtol, tiny=tiny, label="logits")
    live = np.isfinite(rows.logits) | (rows.weights != 0)  # a label at -inf costs infinity
    rtol = member.parts * tolerances.rtol("gradient_weights", gamma)
    want = np.where(live, rows.alpha * truth.grad_weights, 0)
    close(np.where(live, by_labels, 0), want, rtol=rtol, tiny=4 * tiny, label="labels")
    rtol = member.parts * tolerances.rtol("gradient_gamma", gamma)
    tiny *= tolerances.FLUSHED_LOG
    close(by_gamma[:, 0], truth.grad_gamma, rtol=rtol, tiny=tiny, label="gamma")


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("classes", [3])
def test_hessians_against_the_oracle(form, name, classes, gamma):
    member, (logits, targets) = MEMBERS[name], cases.rows(classes)
    logits, targets = logits[::3], targets[::3]
    hot = oracle.one_hot(targets, classes)
    truth = oracle.batch(logits, hot, gamma, member.kind)
    tiny = tolerances.flush(classes, factor=4 * tolerances.FLUSHED_LOG * (2 + gamma) ** 2)
    operands = {
        softmax_focal_loss_with_integer_labels: (targets, truth.hessian_scale_odds),
        softmax_focal_loss: (hot.astype(np.float32), truth.hessian_scale),
    }
    for loss, (labels, scale) in operands.items():
        found = hessian_of(name, loss, logits, labels, jnp.float32(gamma))
        rtol = member.parts * tolerances.rtol("hessian", gamma)
        tolerances.assert_close(found, truth.hessian, scale=scale, rtol=rtol, tiny=tiny, label=loss.__name__)


@partial(jax.jit, static_argnums=0)
def of_logits(name, inputs, kernel, labels, gamma, smoothing):
    """The sum of the losses of ``inputs @ kernel`` and its gradients: one program, with a gamma per logit."""

    def total(inputs, kernel, gamma):
        logits = jnp.dot(inputs, kernel, precision="highest")
        term = MEMBERS[name].make(gamma)
        losses = softmax_focal_loss_with_integer_labels(logits, labels, term=term, label_smoothing=smoothing)
        return jnp.sum(losses)

    return jax.value_and_grad(total, (0, 1, 2))(inputs, kernel, gamma)


@pytest.mark.parametrize("strategy", ["rows", "classes"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_linear_loss_is_that_of_its_logits(name, strategy, smoothing):
    """Options per class and per example, in every gradient."""
    rng = np.random.default_rng(0)
    inputs, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in [(6, 3), (3, 7)])
    labels = jnp.asarray(rng.integers(0, 7, 6), jnp.int32)

    def chunked(inputs, kernel, gamma):
        return linear_softmax_focal_loss(
            inputs,
            kernel,
            labels,
            term=MEMBERS[name].make(gamma),
            label_smoothing=smoothing,
            reduction="sum",
            strategy=strategy,
            chunk=2,
        )

    for shape, spread in (((7,), (0,)), ((6, 1), (1,))):
        gamma = jnp.asarray(rng.uniform(0.5, 2.0, shape), jnp.float32)
        found = jax.jit(jax.value_and_grad(chunked, (0, 1, 2)))(inputs, kernel, gamma)
        each = jnp.broadcast_to(gamma, (6, 7))
        value, by_layer = of_logits(name, inputs, kernel, labels, each, jnp.float32(smoothing))
        want = value, (*by_layer[:2], np.sum(by_layer[2], spread).reshape(shape))
        chex.assert_trees_all_close(found, want, rtol=1e-5, atol=1e-5)  # sums of both signs, near 1


class Sided(NamedTuple):
    """A term whose answer "no" is another kind of loss, with its margin."""

    make: Any
    yes: Any
    no: Any
    margin: float = 0.0
    parts: float = 1.0


MARGIN = float(np.float32(0.05))
SIDED = {name: Sided(m.make, m.kind, lambda _, m=m: m.kind, 0.0, m.parts) for name, m in MEMBERS.items()}
SIDED |= {
    "asymmetric": Sided(lambda g: Asymmetric(g, g, MARGIN), oracle._Term, oracle.beyond, MARGIN),
    "detached asymmetric": Sided(
        lambda g: Detached(Asymmetric(g, g, MARGIN)), oracle.DetachedFocal, oracle.detached_beyond, MARGIN
    ),
    "without a margin": Sided(lambda g: Asymmetric(g, g, 0.0), oracle._Term, lambda _: oracle._Term),
}


@partial(jax.jit, static_argnums=0)
def of_answers(name, z, y, gamma):
    def one(z, y, gamma):
        return sigmoid_focal_loss(z, y, term=SIDED[name].make(gamma), soft_labels="linear")

    by_all = jax.value_and_grad(one, (0, 1, 2))
    return jax.vmap(by_all, (0, 0, None))(z, y, gamma), jax.vmap(jax.grad(jax.grad(one)), (0, 0, None))(
        z, y, gamma
    )


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("name", SIDED)
def test_two_answers_against_the_oracle(name, gamma):
    """Sigmoid losses of every term, near the margin too; labels between 0 and 1 weigh the answers."""
    member = SIDED[name]
    near = np.float32(np.log(MARGIN / (1 - MARGIN)) + np.array([-0.1, -1e-3, 1e-3, 0.1]))
    z, y = (
        np.concatenate([one, *extra])
        for one, extra in zip(
            cases.sigmoid_grid(),
            [[near, near], [np.zeros(4, np.float32), np.full(4, 0.3, np.float32)]],
            strict=True,
        )
    )
    truth = oracle.answers(z, y, gamma, member.yes, member.no, member.margin)
    (value, (by_z, by_y, by_gamma)), second = of_answers(name, z, y, jnp.float32(gamma))
    tiny = tolerances.flush(factor=2 * (2 + gamma) / (member.margin or 1))  # p flushes before p / margin
    logs = tiny * tolerances.FLUSHED_LOG
    table = [
        ("value", value, truth.value, truth.scale_value, tiny),
        ("gradient_scale", by_z, truth.grad, truth.scale, tiny),
        ("gradient_weights", by_y, truth.grad_y, truth.scale_y, tiny),
        ("gradient_gamma", by_gamma, truth.grad_gamma, truth.scale_gamma, logs),
        ("hessian", second, truth.grad2, truth.scale2, logs),
    ]
    names = [f"z = {a:g}, y = {b:g}" for a, b in zip(z, y, strict=True)]
    for quantity, got, want, scale, flushed in table:
        rtol = member.parts * tolerances.rtol(quantity, gamma)
        tolerances.assert_close(got, want, scale=scale, rtol=rtol, tiny=flushed, names=names, label=quantity)


def test_the_default_of_a_pull_is_the_closed_form(name):
    """From the value alone: the same gradient as from the pull that a term writes."""
    term = MEMBERS[name].make(jnp.float32(1.5))

    class FromValue(Term):
        term: Any

        def value(self, odds):
            return self.term.value(odds)

    logits, targets = cases.rows(10)
    loss = softmax_focal_loss_with_integer_labels
    found, want = (
        jax.grad(lambda z, t=t: jnp.sum(loss(z, targets, term=t)))(logits) for t in (FromValue(term), term)
    )
    rtol = MEMBERS[name].parts * tolerances.rtol("gradient")
    tolerances.assert_close(found, want, rtol=rtol, tiny=tolerances.flush(10, factor=4))


def test_terms_of_like_fields_are_different_trees():
    """Or a program of one would be run for the other: JAX looks programs up by these."""
    one, other = jax.tree.structure(Focal(1.0)), jax.tree.structure(Quadratic(1.0))
    assert one != other
    assert jax.tree.map(lambda x: 2 * x, Poly(1.0, 0.5)) == Poly(2.0, 1.0)


def test_options_are_data(name):
    """Vmapped, scheduled in one program, and learned."""
    logits, labels = jnp.asarray(cases.rows(3).logits[:8]), jnp.asarray(cases.rows(3).targets[:8])
    make = MEMBERS[name].make

    def mean(gamma):
        return jnp.mean(softmax_focal_loss_with_integer_labels(logits, labels, term=make(gamma)))

    gammas = jnp.array([0.5, 1.0, 3.0])
    each = jnp.stack([mean(gamma) for gamma in gammas])
    np.testing.assert_allclose(jax.vmap(mean)(gammas), each, rtol=tolerances.rtol("same"))
    chex.clear_trace_counter()
    once = jax.jit(chex.assert_max_traces(mean, n=1))
    np.testing.assert_allclose([once(gamma) for gamma in gammas], each, rtol=tolerances.rtol("same"))
    assert np.isfinite(jax.grad(mean)(gammas[0]))


def test_the_posterior_undoes_a_term(name):
    """Where p minimises the expected loss, its gradient weighed by the posteriors is 0."""
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(20, 4)), jnp.float32)
    term = MEMBERS[name].make(1.5)
    alpha = jnp.array([0.5, 1.0, 2.0, 1.5])
    eta = jnp.exp(log_posterior(logits, term=term, alpha=alpha))
    np.testing.assert_allclose(jnp.sum(eta, 1), 1, rtol=1e-6)

    def expected(z):
        return jnp.sum(softmax_focal_loss(z, jax.lax.stop_gradient(eta), term=term, alpha=alpha))

    sizes = jnp.sum(eta * alpha[None], 1, keepdims=True)
    assert np.max(np.abs(jax.grad(expected)(logits)) / sizes) < 2e-6 * MEMBERS[name].parts


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
    logits, labels = jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32)
    calls = (
        partial(softmax_focal_loss_with_integer_labels, logits, labels),
        partial(softmax_focal_loss, logits, jnp.ones((4, 3))),
        partial(linear_softmax_focal_loss, jnp.ones((4, 2)), jnp.ones((2, 3)), labels),
        partial(log_posterior, logits),
    )
    for call in calls:
        with pytest.raises(error) as caught:
            call(**options)
        assert str(caught.value).startswith(message)
